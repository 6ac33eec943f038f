# SPDX-License-Identifier: Apache-2.0
"""The process that waits for jobs: one at a time for each thing that is made, and what signals mean to it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from sis.errors import SisError

#: Seconds between two attempts to get a lock that another head holds.
_LOCK_POLL = 0.5


class Told(BaseException):
    """A signal came that ends the head.

    cancels: Ctrl-C and SIGTERM end the jobs as well; a closed terminal (SIGHUP) leaves them. code: what the process
    returns.
    """

    def __init__(self, number: int) -> None:
        self.code, self.cancels = 128 + number, number != signal.SIGHUP
        super().__init__(signal.Signals(number).name)


class HeadSignals:
    """While entered, the signals that end a head raise `Told`; a second one is ignored."""

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> HeadSignals:
        self._before = {number: signal.signal(number, self._tell) for number in self._NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        for every in self._NUMBERS:
            signal.signal(every, signal.SIG_IGN)
        raise Told(number)


@contextmanager
def head_lock(folder: Path, title: str) -> Iterator[None]:
    """Be the only head of a launch folder, after whoever is; the lock frees itself when its holder dies.

    Raises SisError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a+")
    except OSError as error:
        raise SisError(f"cannot write here: {error.strerror}", where=folder) from error
    with handle:
        told = False
        while not _locked(handle.fileno()):
            if not told:
                say(f"{title}: another process ({_holder(folder / '.lock')}) follows these jobs; waiting for it")
                told = True
            time.sleep(_LOCK_POLL)
        with suppress(OSError):
            handle.truncate(0)
            handle.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            handle.flush()
        yield


def say(text: str) -> None:
    """A line for whoever reads along; nobody may."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: Path) -> str:
    try:
        facts = json.loads(lock.read_text())
        return f"{facts['pid']} on {facts['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
