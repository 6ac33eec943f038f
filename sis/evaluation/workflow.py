# SPDX-License-Identifier: Apache-2.0
"""Runs the workflow on an experiment, and turns its failure into the line of the job that failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sis.config.files import project_root
from sis.errors import SisError

_REFUSAL = re.compile(r"^\s*error: (?P<line>.+)$")
_PROGRESS = re.compile(r"^[^:]+: [0-9,]+/[0-9,]+ ")
#: What Snakemake says where another workflow is about the same files.
_LOCKED = ("LockException", "cannot be locked")


def run_workflow(experiment: str, targets: Sequence[str], cores: int, log: Path) -> None:
    """Make `targets` by Snakemake with the local profile; what is there already is kept.

    The jobs' progress is shown as it comes, all that they say kept in `log`. Raises SisError with the words of the job
    that refused.
    """
    command = [
        sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/local", "--cores", str(cores),
        "--quiet", "all", "--config", f"experiment={experiment}", "--", *targets,
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as kept, _started(command) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kept.write(line)
                if _PROGRESS.match(line):
                    sys.stderr.write(line)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise _failure(log)


def _started(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=project_root(), env=environment, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def _failure(log: Path) -> SisError:
    lines = log.read_text(errors="replace").splitlines()
    if any(word in line for line in lines for word in _LOCKED):
        fix = "wait for it; after a crash: snakemake --unlock"
        return SisError("another workflow is working on the same files", where=project_root(), fix=fix)
    said = [match["line"] for line in lines if (match := _REFUSAL.match(line))]
    if said:
        return SisError(said[0])
    return SisError("the workflow failed", where=log, fix="its last lines say why")
