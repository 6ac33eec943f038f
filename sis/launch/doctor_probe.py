# SPDX-License-Identifier: Apache-2.0
"""Runs on a node for `sis doctor`: answers through files of the shared folder, as the launcher's jobs do.

    python -m sis.launch.doctor_probe FOLDER

Light on purpose: what it needs of the node is this environment's Python and the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path

#: Questions from the head, each a new file, each answered by replacing one file.
ROUNDS = 5
#: In this round the head no longer holds the lock.
FREED = ROUNDS
#: The question that asks nothing more: until then nobody leaves, for srun soon ends those who are left.
FAREWELL = ROUNDS + 1
LOCK = "lock"
#: Seconds between two looks, and until a head that asks nothing more counts as gone.
LOOK, PATIENCE = 0.01, 120.0


def question(folder: Path, number: int) -> Path:
    """The file whose appearance asks."""
    return folder / f"question-{number}"


def answer(folder: Path, rank: int) -> Path:
    """The file in which a process of the job answers."""
    return folder / f"answer-{rank}.json"


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def main(folder: Path) -> int:
    """Answer every question; returns the exit code, 1 when the head falls silent."""
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    facts = {
        "node": os.environ.get("SLURMD_NODENAME", platform.node()),
        "python": platform.python_version(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    for number in range(ROUNDS + 1):
        if number and not _seen(question(folder, number)):
            return 1
        said = {**facts, "round": number, "lock": _lock(folder / LOCK), "at": time.time()}
        replace(answer(folder, rank), json.dumps(said))
    return 0 if _seen(question(folder, FAREWELL)) else 1


def _seen(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK)
    return True


def _lock(path: Path) -> str:
    """Whether somebody else holds the lock: `held`, `free`, or why it cannot be told."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError as error:
        return error.strerror or str(error)
    return "free"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
