# SPDX-License-Identifier: Apache-2.0
"""How long work is told to stop soon: a signal raises a flag, the work looks at it between its steps.

Clusters send SIGUSR2 some time before a job is killed, at its time limit or when another job takes its place. Nothing
is saved inside the signal handler, which may run in the middle of an optimiser's step.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What the command line returns after it stopped on request (EX_TEMPFAIL of sysexits.h).
STOPPED_CODE = 75
#: How long the other processes of a job wait until it is ended.
_END_SECONDS = 120.0


class Stopped(Exception):  # noqa: N818
    """The work stopped on request, at a place from which it goes on."""


class Notice:
    """What this process was told: to stop soon (`given`), or that it may be killed soon (`urgent`)."""

    def __init__(self) -> None:
        self.given = self.urgent = False

    def urge(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Tell the work that a state of it would better be saved now; it goes on."""
        self.urgent = True

    def saved(self) -> None:
        """A state is there."""
        self.urgent = False

    def give(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Tell the work; a signal handler."""
        self.given = True

    def obey(self) -> None:
        """Raise Stopped if the work was told to; call it where nothing is half done."""
        if self.given:
            raise Stopped


#: For work that nobody ever tells to stop.
NEVER = Notice()


@contextmanager
def told_by_signal(number: int = signal.SIGUSR2) -> Iterator[Notice]:
    """Lend a notice that a signal gives; the signal's own handler, which may queue the job again, runs after the work.

    Whoever handled the signal before (submitit, in a job) is called once the work has stopped: it queues the job again
    and does not come back. In all processes of a job but the first it does come back, and they wait for their end, as
    an earlier one would end the first before it is done. Without such a handler the process ends with `STOPPED_CODE`.

    submitit takes no notice of SIGTERM, which is all that a job hears of `scancel`, and of preemption on many sites:
    there it means that a state is saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Notice()
        return
    notice = Notice()
    before, passed_over = signal.signal(number, notice.give), signal.getsignal(signal.SIGTERM)
    if callable(passed_over):
        signal.signal(signal.SIGTERM, notice.urge)
    try:
        yield notice
    except Stopped:
        if callable(before):
            before(number, None)
            time.sleep(_END_SECONDS)
        sys.stderr.write("stopped on request; finished work is kept, run the same command again\n")
        raise SystemExit(STOPPED_CODE) from None
    finally:
        signal.signal(number, before)
        if callable(passed_over):
            signal.signal(signal.SIGTERM, passed_over)
