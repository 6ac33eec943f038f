# SPDX-License-Identifier: Apache-2.0
"""The head of a launch: attach to the jobs that make a thing or submit them, follow them to their end, report.

The head may die at any moment; the jobs go on and the next head finds them by the record, or by their unique name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sis.config.cluster import Needs, SlurmSite
from sis.data.manifest import stable_hash
from sis.data.spare import bring_back
from sis.errors import SisError
from sis.launch.follow import Follower, Settled
from sis.launch.head import HeadSignals, Told, head_lock, say
from sis.launch.job import StageJob
from sis.launch.queue import ENDED, JobState, Queue, Unreachable
from sis.launch.record import Outcome, Record, source_digest
from sis.launch.submit import Submitter, submitter

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Work:
    """What is made elsewhere.

    title: as `train scenes/sdm-ab12`. key: of everything that decides the result. outputs: its files, the declared one
    last; spare: where finished jobs leave them a second name. main, argv: the command that makes it; `arguments` are
    its further words for some parts of it, `missing` the parts that are not made yet. total, units, done: units of work
    in all, in some parts, and those that are made. explain: why it may be incomplete though all jobs ended well.
    """

    title: str
    key: str
    outputs: list[Path]
    spare: Path
    main: Callable[[Sequence[str]], int]
    argv: list[str]
    needs: Needs
    missing: Callable[[], list[int]]
    arguments: Callable[[list[int]], list[str]]
    total: int = 0
    units: Callable[[list[int]], int] = len
    done: Callable[[], int] = int
    explain: Callable[[], str] = str

    @property
    def folder(self) -> Path:
        """The launch folder: never part of the artefact."""
        return self.spare / "launch"

    def ready(self) -> bool:
        """Whether the result is there, if need be under its second name."""
        return bring_back(self.outputs, self.spare)


def _dealt(parts: list[int], most: int) -> list[list[int]]:
    """Parts dealt out to at most so many jobs; one job without parts when there are none."""
    count = max(1, min(len(parts), most))
    return [parts[i::count] for i in range(count)]


class Launcher:
    """Runs one piece of work through a queue."""

    def __init__(self, work: Work, launcher: str, site: SlurmSite, to: Submitter | None = None) -> None:
        self.work, self.launcher, self.site = work, launcher, site
        self.to = to or submitter(launcher, site)
        place = stable_hash([str(work.folder.resolve()), work.key], 12)
        self.name = f"sis-{work.title.split()[-1].replace('/', '-')}-{place}"[:200]

    def run(self) -> int:
        """Follow the work to its end; returns 0, or the exit code of the jobs that failed.

        Raises SisError for what cannot be submitted, or died; SystemExit after Ctrl-C, SIGTERM (the jobs are
        cancelled) and SIGHUP (they are left).
        """
        with head_lock(self.work.folder, self.work.title), HeadSignals():
            try:
                record = self._alive_or_done()
                return 0 if record is None else self._follow(record)
            except Told as told:
                self._leave(told)
                raise SystemExit(told.code) from None

    def _leave(self, told: Told) -> None:
        """Cancel the jobs, or leave them to themselves."""
        record = Record.load(self.work.folder)
        states = self._queue_of(record).states(record.job) if record is not None else {}
        alive = states is None or any(state.state not in ENDED for state in states.values())
        ours = {record.job} if record is not None and alive else set()
        try:
            # Between its submission and its record a job is known by its name alone.
            ours |= set(self.to.queue.find(self.name))
            for job in sorted(ours):
                if told.cancels:
                    self._say(f"cancelling job {job}")
                    self._cancelled(job)
                else:
                    self._say(f"leaving job {job} to itself; the same command follows it again")
        except Unreachable as error:
            self._say(str(error))

    def _alive_or_done(self) -> Record | None:
        """The record of the jobs that are at it, new ones if need be; None when the result is there already."""
        record = Record.load(self.work.folder)
        alive = record is not None and self._is_alive(record)
        if record is not None and record.key != self.work.key:
            if alive:
                what = f"job {record.job} still makes this of other inputs"
                raise SisError(what, where=self.work.folder, fix=f"wait for it or end it: {self._cancel_words(record)}")
            record = None
        if record is not None and alive:
            if record.launcher != self.launcher:
                what = f"job {record.job} of --launcher {record.launcher} still makes this"
                raise SisError(what, where=self.work.folder, fix="follow it with that launcher, or end it first")
            self._say(f"following job {record.job} of an earlier start")
            return record
        if record is not None and not self._failed(record) and self.work.ready():
            self._say(f"job {record.job} has finished it")
            return None
        return self._submit(record)

    def _end_unrecorded(self, known: Record | None) -> None:
        """Cancel jobs of our name that nobody wrote down.

        Their head died while it submitted them, held, or sbatch gave no answer though it had taken them.
        """
        for job in set(self.to.queue.find(self.name)) - {known.job if known else ""}:
            self._say(f"cancelling job {job}, which was never written down")
            self._cancelled(job)

    def _submit(self, before: Record | None) -> Record:
        work, attempt = self.work, 1 + (before.attempt if before else self._attempts())
        folder = work.folder / str(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        members = _dealt(work.missing(), self.to.at_most(work.needs))
        argv = [[*work.argv, *work.arguments(part)] for part in members]
        code = source_digest()
        jobs = [StageJob(work.main, tuple(words), folder.resolve(), i, code) for i, words in enumerate(argv)]

        def hand_in() -> str:
            self._end_unrecorded(before)
            return self.to.submit(jobs, self.name, folder.resolve(), work.needs)

        job = self._patiently(hand_in)
        record = Record(self.launcher, job, self.name, work.key, work.argv, attempt, str(folder), time.time(), members)
        record.save(work.folder)
        self._patiently(lambda: self.to.queue.release(job))
        count = f" ({len(jobs)} jobs)" if len(jobs) > 1 else ""
        self._say(f"submitted job {job}{count}, logs in {folder}")
        return record

    def _attempts(self) -> int:
        """Number of the last submission that left a folder here."""
        found = [int(p.name) for p in self.work.folder.glob("[0-9]*") if p.name.isdigit()]
        return max(found, default=0)

    def _follow(self, record: Record) -> int:
        """Follow jobs until all have ended, submit again what a new job may cure."""
        budget, mark = self.site.resubmits, self.work.done()
        while True:
            follower = Follower(record, self.work.title, self.to, self.site, self.work.needs)
            settled = follower.run(self.work.total, self._made_before(record))
            if not settled.failed and self._seen():
                self._say("done")
                return 0
            again = not settled.failed or all(fault.curable for fault in settled.failed)
            now = self.work.done()
            budget = self.site.resubmits if now > mark else budget - 1
            if not again or budget < 0:
                return self._give_up(settled)
            mark = now
            for fault in settled.failed:
                self._say(f"{fault.error}; submitting it again")
            record = self._submit(record)

    def _made_before(self, record: Record) -> int:
        """Units that these jobs did not have to make."""
        return self.work.total - sum(self.work.units(part) for part in record.members) if self.work.total else 0

    def _seen(self) -> bool:
        """Whether the result is there; another node's files may take their time to be seen."""
        deadline = time.monotonic() + self.to.patience
        while not (ready := self.work.ready()) and time.monotonic() < deadline:
            time.sleep(min(0.5, self.site.poll_seconds))
        return ready

    def _give_up(self, settled: Settled) -> int:
        if not settled.failed:
            what = f"all jobs of {self.work.title} ended well, and it is not complete{self.work.explain()}"
            raise SisError(what, where=self.work.folder)
        for fault in settled.failed[:3]:
            sys.stderr.write(fault.tail)
        if len(settled.failed) > 1:
            self._say(f"{len(settled.failed)} jobs failed, finished ones are kept; the first:")
        first = settled.failed[0]
        if first.code:
            sys.stderr.write(f"error: {first.error}\n")
            return first.code
        raise first.error

    def _is_alive(self, record: Record) -> bool:
        """Whether jobs of a record are still at work; waits for a controller that does not answer.

        A job that has written how it ended may stay in the queue for some moments.
        """
        queue = self._queue_of(record)

        def answered() -> dict[int, JobState]:
            if (states := queue.states(record.job)) is None:
                raise Unreachable("Slurm's controller does not answer")
            return states

        living = [i for i, state in self._patiently(answered).items() if state.state not in ENDED]
        return any(Outcome.load(Path(record.folder), i) is None for i in living)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """What a call to the controller returns, whenever it answers."""
        told = False
        while True:
            try:
                return call()
            except Unreachable as error:
                if not told:
                    self._say(f"{error}; waiting")
                    told = True
                time.sleep(self.site.poll_seconds)

    def _queue_of(self, record: Record) -> Queue:
        return self.to.queue if record.launcher == self.launcher else submitter(record.launcher, self.site).queue

    def _failed(self, record: Record) -> bool:
        outcomes = [Outcome.load(Path(record.folder), i) for i in range(len(record.members))]
        return any(outcome is None or outcome.code for outcome in outcomes)

    def _cancelled(self, job: str) -> None:
        """Cancel a job and wait until it is gone, so that nothing writes after us."""
        self.to.queue.cancel(job)
        deadline = time.monotonic() + self.site.patience_seconds
        while time.monotonic() < deadline:
            states = self.to.queue.states(job)
            if states is not None and all(state.state in ENDED for state in states.values()):
                return
            time.sleep(min(1.0, self.site.poll_seconds))

    def _cancel_words(self, record: Record) -> str:
        ids = " ".join(one.split("@")[0] for one in record.job.split("+"))
        return f"scancel {ids}" if record.launcher == "slurm" else f"kill -INT {ids}"

    def _say(self, text: str) -> None:
        say(f"{self.work.title}: {text}")
