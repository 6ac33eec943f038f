# SPDX-License-Identifier: Apache-2.0
"""Plain files of weights: is one there, how large is it, what is its sha256; nothing is remembered between calls."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from sis.errors import SisError

CHUNK = 1 << 22


def silent(count: int) -> None:
    """A progress callback that shows nothing; others get the number of bytes that were read."""


def is_there(path: Path) -> bool:
    """Whether a file lies at `path`. Raises SisError for a folder, a link to nowhere and what may not be looked at."""
    try:
        if path.is_file():
            return True
        what = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no plain file"
    except OSError as error:
        raise unreadable(error, path) from error
    if os.path.lexists(path):
        raise SisError(f"this is {what}, a file of weights is expected", where=path, fix="delete or rename it")
    return False


def size_of(path: Path) -> int:
    """Bytes of a file. Raises SisError where it cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(error, path) from error


def hash_file(path: Path, advance: Callable[[int], None] = silent) -> str:
    """The sha256 of a file's bytes, never remembered. Raises SisError where it cannot be read.

    advance: called with the number of bytes of each piece that was read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while piece := handle.read(CHUNK):
                digest.update(piece)
                advance(len(piece))
    except OSError as error:
        raise unreadable(error, path) from error
    return digest.hexdigest()


def unreadable(error: OSError, path: Path) -> SisError:
    """The refusal that a system's error becomes."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return SisError(f"cannot be read: {reason}", where=path, fix="check its permissions")
