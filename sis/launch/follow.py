# SPDX-License-Identifier: Apache-2.0
"""Follows the jobs of one submission until each has ended, by its own word or without one."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sis.config.cluster import Needs, SlurmSite
from sis.errors import SisError
from sis.launch.diagnosis import diagnose, stuck, tail, transient
from sis.launch.head import say
from sis.launch.progress import JobProgress
from sis.launch.queue import ENDED, JobState
from sis.launch.record import Outcome, Record
from sis.launch.submit import Submitter
from sis.plan_cluster import gres

#: What somebody else will end, or has begun on purpose.
_PASSES = re.compile("JobHeldUser|JobHeldAdmin|ReqNodeNotAvail|Reserved|PartitionInactive")


@dataclass(frozen=True)
class Fault:
    """A job that did not end well.

    code: what its command returned; 0 when it died without a word. curable: whether a new job may end better. tail: the
    end of its log.
    """

    index: int
    error: SisError
    code: int
    curable: bool
    tail: str


@dataclass(frozen=True)
class Settled:
    """How all jobs of a submission ended."""

    failed: list[Fault] = field(default_factory=list)


class Follower:
    """Looks at the queue and at what the jobs write until all have ended."""

    def __init__(self, record: Record, title: str, to: Submitter, site: SlurmSite, needs: Needs) -> None:
        self.record, self.title, self.to, self.site, self.needs = record, title, to, site, needs
        self.folder = Path(record.folder)
        #: When a job was first seen ended, or not at all, without an outcome.
        self._silent: dict[int, float] = {}
        self._warned: set[str] = set()

    def run(self, total: int, done: int) -> Settled:
        """Wait for the end of all jobs. total, done: units of work in all, and those made before them."""
        count = len(self.record.members)
        open_, failed = set(range(count)), []
        members = count if count > 1 else 0
        with JobProgress(self.title, self.folder, members, total, done) as progress:
            while open_:
                states = self.to.queue.states(self.record.job)
                with suppress(BrokenPipeError):
                    progress.show(self.record.job.split("@")[0], states)
                for index in sorted(open_):
                    outcome = Outcome.load(self.folder, index)
                    fault = self._fault(index, outcome, states)
                    if fault is not None:
                        failed.append(fault)
                    if fault is not None or outcome is not None:
                        open_.discard(index)
                if open_:
                    time.sleep(self.site.poll_seconds)
        return Settled(failed)

    def _fault(self, index: int, outcome: Outcome | None, states: dict[int, JobState] | None) -> Fault | None:
        """What is wrong with a job; None while it may still end well, and when it has."""
        log = self.to.log(self.folder, self.record.job, index)
        if outcome is not None:
            if not outcome.code:
                return None
            error = diagnose(self._called(index), JobState("FAILED", nodes=outcome.host), log, self.needs)
            return Fault(index, error, outcome.code, False, _tail(log))
        if states is None:
            # Nobody knows anything: silence counts from the next answer.
            self._silent.clear()
            return None
        state = states.get(index)
        if state is None and states.keys() == {0} and states[0].state == "CANCELLED":
            # How a restarted controller shows an array that was cancelled before a member began.
            state = states[0]
        elif state is None and states and not log.exists():
            # The controller remembers others of the array, and nothing of one that was cancelled before it began.
            state = JobState("CANCELLED", reason="before it began")
        if state is not None and state.state not in ENDED:
            self._silent.pop(index, None)
            return self._never_starts(index, state)
        since = self._silent.setdefault(index, time.monotonic())
        if time.monotonic() - since < self.to.patience:
            return None
        error = diagnose(self._called(index), state, log, self.needs)
        return Fault(index, error, 0, state is not None and transient(state), _tail(log))

    def _never_starts(self, index: int, state: JobState) -> Fault | None:
        """A waiting job that can never start as it is: all are cancelled; what passes is told once."""
        why = stuck(state)
        if not why:
            return None
        if not _PASSES.search(state.reason):
            self.to.queue.cancel(self.record.job)
            asked = ", ".join(filter(None, (gres(self.site, self.needs), f"{self.needs.memory_gb:g} GiB")))
            what = f"job {self._called(index)} would never start: {why}; it asks for {asked}, {self.needs.hours:g} h"
            error = SisError(what, where=self.folder, fix="ask for something else (docs/slurm.md), then run again")
            return Fault(index, error, 0, False, "")
        if why not in self._warned:
            self._warned.add(why)
            say(f"{self.title}: job {self._called(index)} waits: {why}")
        return None

    def _called(self, index: int) -> str:
        if "@" in self.record.job:
            return self.record.job.split("+")[index].split("@")[0]
        return f"{self.record.job}_{index}" if len(self.record.members) > 1 else self.record.job


def _tail(log: Path) -> str:
    text = tail(log)
    return f"--- end of {log}\n{text.rstrip()}\n---\n" if text.strip() else ""
