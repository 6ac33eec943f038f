# SPDX-License-Identifier: Apache-2.0
"""Kinds `command` and `images`: pictures made by somebody else's program, or lying in a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sis.config.cards import MethodCard
from sis.config.files import project_root
from sis.data.images import decode_png, encode_png
from sis.data.manifest import stable_hash
from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.sampling.pictures import check_pictures, find_pictures
from sis.sampling.shards import Key, MakeBatch

_TAIL_LINES, _TAIL_BYTES = 5, 1000


def read_folder(folder: Path, pattern: str, keys: list[Key], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the pictures of some keys, uint8 `(n, h, w, 3)`. Raises SisError as `find_pictures` and `check_pictures`."""
    files = find_pictures(folder, pattern, keys)
    check_pictures(folder, files, size)
    return _decoded([files[key] for key in keys])


def folder_maker(folder: Path, pattern: str, keys: list[Key], size: tuple[int, int], asked: list[Key]) -> MakeBatch:
    """Images from a folder: all its names, and the files of the images that are `asked` for, are checked first."""
    files = find_pictures(folder, pattern, keys)
    check_pictures(folder, {key: files[key] for key in asked}, size)
    return lambda some: _decoded([files[key] for key in some])


def _decoded(paths: list[Path]) -> NDArray[np.uint8]:
    return np.stack([decode_png(path.read_bytes(), where=path, mode="RGB") for path in paths])


def command_maker(card: MethodCard, pairs: PairSet, work: Path, seed: int) -> MakeBatch:
    """Images from an external program, run once a shard-sized batch in a folder of its own.

    The program finds label maps `{labels}/<image id>.png` (8-bit stored ids) and `{ids}`, lines of image id, tab,
    sample index; it writes `{out}/<image id>_<sample index, 3 digits>.png`, 8-bit RGB of the label map's size.
    """

    def make(keys: list[Key]) -> NDArray[np.uint8]:
        # Absolute, because the program runs in the project's folder, wherever this command was typed.
        folder = work.resolve() / stable_hash(keys)
        shutil.rmtree(folder, ignore_errors=True)
        labels, out, ids = folder / "labels", folder / "out", folder / "ids.txt"
        labels.mkdir(parents=True)
        out.mkdir()
        for image_id in dict.fromkeys(image_id for image_id, _ in keys):
            (labels / f"{image_id}.png").write_bytes(encode_png(pairs.by_id(image_id).label))
        ids.write_text("".join(f"{image_id}\t{sample}\n" for image_id, sample in keys))
        places = {"labels": labels, "out": out, "ids": ids, "seed": seed}
        _run(command_line(card, {k: str(v) for k, v in places.items()}, folder), folder / "log.txt", card)
        images = read_folder(out, "{image_id}_{sample:03d}.png", keys, pairs.size)
        shutil.rmtree(folder)
        return images

    return make


def command_line(card: MethodCard, places: dict[str, str], folder: Path) -> list[str]:
    """The argument list of a command card: no shell, so nothing in a name is ever executed."""
    import shlex

    words = [string.Formatter().vformat(word, (), places) for word in shlex.split(card.command)]
    if card.container:
        runner = shutil.which("apptainer") or shutil.which("singularity")
        if runner is None:
            raise SisError("this method needs apptainer (its card names a container)", where=card.container)
        bind = ["--bind", str(folder.resolve()), "--bind", str(project_root()), "--pwd", str(project_root())]
        return [runner, "exec", "--cleanenv", "--net", "--network", "none", *bind, card.container, *words]
    if card.conda:
        if shutil.which("conda") is None:
            raise SisError("this method needs conda (its card names an environment)", where=card.conda)
        return ["conda", "run", "--no-capture-output", "--name", card.conda, *words]
    return words


def _run(command: list[str], log: Path, card: MethodCard) -> None:
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, cwd=project_root(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(),
                start_new_session=True, preexec_fn=_not_told_to_stop,
            )  # fmt: skip
        except OSError as error:
            raise SisError(f"cannot start {command[0]!r}: {error.strerror}", where=card.title) from error
        try:
            code = process.wait(timeout=card.timeout_minutes * 60)
        except subprocess.TimeoutExpired:
            raise SisError(
                f"the command ran over {card.timeout_minutes:g} minutes and was stopped",
                where=log,
                fix="raise timeout_minutes",
            ) from None
        finally:
            _kill_group(process)
    if code:
        raise SisError(f"the command failed with exit code {code}: {_last_words(log)}", where=log)


def _not_told_to_stop() -> None:
    """A cluster's warning goes to every process of a job; this one it would kill, and the shard could be finished."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _last_words(log: Path) -> str:
    """The last lines of a log of any size."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return " | ".join(handle.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:])


def _environment() -> dict[str, str]:
    """`python` in a command is the Python that runs the harness, activated or not."""
    own = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": own + os.pathsep + os.environ.get("PATH", "")}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and every child it left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
