# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sis.errors import SisError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {errno.EACCES, errno.EROFS, errno.EPERM}


def this_host() -> str:
    """Eight hexadecimal digits for this machine, or container: processes of two nodes may have the same number."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_beside(path: Path) -> Path:
    """The name under which this process, and no other on any node, writes what becomes `path`."""
    return path.with_name(f".{path.name}.tmp-{this_host()}-{os.getpid()}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` once the block has ended well.

    The content is flushed to disk before the rename and the folder after it, so a power cut leaves either the old
    file or the new one. After an error the temporary file is gone and `path` is untouched. Raises SisError when the
    disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105 (named by the fault tests)
        _sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses this, too; the first error says more
            _remove(temporary)


def write_bytes_atomic(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_bytes_atomic(path, text.encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (made if need be), after whoever holds it; it frees itself when its holder dies.

    Raises SisError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise _explained(error, folder / ".lock") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def only_writer(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file (its folder is made), which frees itself when its holder dies.

    Raises SisError when another process holds it, saying that it is at work on `what`, and when it cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a")
    except OSError as error:
        raise SisError(f"cannot write here: {error.strerror}", where=lock.parent) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "wait for it, or stop it"
            raise SisError(f"another process is writing {what}", where=lock, fix=fix) from None
        yield


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed writer left in `folder`; call only when no other file is written there.

    Temporary manifests stay: jobs that made one shard each may finish, and write the manifest, at the same time.
    """
    for leftover in folder.glob(".*.tmp-*"):
        if not leftover.name.startswith(".manifest.json."):
            _remove(leftover)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> SisError:
    if error.errno in _NO_SPACE:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return SisError(
            f"no space left to write {path.name} ({free:,} bytes free)",
            where=path.parent,
            fix="free disk space or choose another root in config/config.yaml, then run again",
        )
    fix = "check permissions" if error.errno in _NO_ACCESS else "check the folder and its file system"
    reason = os.strerror(error.errno) if error.errno else str(error)
    return SisError(f"cannot write {path.name}: {reason}", where=path.parent, fix=fix)
