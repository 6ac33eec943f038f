# SPDX-License-Identifier: Apache-2.0
"""How far the jobs of a launch are, in one line: rewritten on a terminal, now and then in a log."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from sis.launch.queue import JobState
from sis.progress import clock

#: Seconds between two lines of a log while no job changes its state.
LINE_INTERVAL = 60.0
#: Seconds after which a running job that writes no progress adds no rate.
STALE_SECONDS = 600.0

_RUNNING = ("RUNNING", "COMPLETING", "STOPPED")
_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_WAITING = (*_QUEUED, "SUSPENDED", "SIGNALING")


@dataclass(frozen=True)
class _Report:
    """What a job wrote of itself (`sis.progress`)."""

    title: str
    done: int
    total: int
    unit: str
    rate: float
    at: float


class JobProgress:
    """One line about a job or an array; use as a context manager and `show` what the queue says at every look.

    title: what is made, as `train scenes/sdm-ab12`. folder: where the jobs write `progress-<i>.json` and
    `outcome-<i>.json`. members: jobs of the array, 0 for a plain job. total: units of the whole, 0: what the job
    itself says. done: units that were finished before these jobs began.
    """

    def __init__(
        self, title: str, folder: Path, members: int = 0, total: int = 0, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.title, self.folder, self.members, self.total, self.done = title, folder, members, total, done
        self.stream = stream or sys.stderr
        self.requeued = 0
        self._terminal = self.stream.isatty()
        self._states: dict[int, JobState] = {}
        self._fresh: dict[int, tuple[float, float]] = {}
        self._left: dict[int, float] = {}
        self._shown: tuple[object, ...] = ()
        self._last = float("-inf")
        self._open = False

    def __enter__(self) -> JobProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, job: str, states: dict[int, JobState] | None) -> None:
        """Say how a job is, if there is news or a minute has passed; None: the controller does not answer."""
        line = self.line(job, states)
        now, key = time.monotonic(), self._key(job, states)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r{line[:width]}\x1b[K")
            self._open = True
        elif key != self._shown or now - self._last >= LINE_INTERVAL:
            self.stream.write(f"{line}\n")
            self._last = now
        self._shown = key
        self.stream.flush()

    def close(self) -> None:
        """End the line on a terminal, so that what follows begins a new one."""
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
            self._open = False

    def line(self, job: str, states: dict[int, JobState] | None) -> str:
        """The line of this moment."""
        reports = self._reports()
        if states is not None:
            self._follow(states, reports)
        parts = [self._jobs(job, states), *self._work(reports)]
        if self.requeued:
            parts.insert(1, f"{self.requeued} requeued")
        return f"{self.title}: {', '.join(part for part in parts if part)}"

    def _key(self, job: str, states: dict[int, JobState] | None) -> tuple[object, ...]:
        if states is None:
            return job, None
        if not self.members:
            state = self._states.get(0, JobState("UNKNOWN"))
            return job, state.state, state.nodes, self.requeued
        return job, *sorted(self._counts().items()), self.requeued

    def _follow(self, states: dict[int, JobState], reports: dict[int, _Report]) -> None:
        """Note which jobs were sent back to the queue since the last look."""
        for index, state in states.items():
            before = self._states.get(index, state).state
            self.requeued += state.state in _QUEUED and before in (*_RUNNING, "PREEMPTED")
            if state.state not in _RUNNING and index in reports:
                self._left[index] = reports[index].at
        # A controller forgets what ended: a member that was last seen alive has no state any more.
        alive = (*_RUNNING, *_WAITING)
        ended = {i: s for i, s in self._states.items() if self.members and s.state not in alive}
        self._states = ended | states

    def _jobs(self, job: str, states: dict[int, JobState] | None) -> str:
        if states is None:
            return f"job {job}, the controller does not answer"
        if self.members:
            counts = self._counts()
            words = [f"{counts[name]:,} {name}" for name in ("done", "running", "waiting", "failed") if counts[name]]
            return ", ".join([f"job {job}", *words])
        state = self._states.get(0)
        if state is None:
            return f"job {job} has left the queue"
        if state.state in _RUNNING:
            return f"job {job} {state.state.lower()}" + (f" on {state.nodes}" if state.nodes else "")
        waits = state.state == "PENDING"
        why = f" ({state.reason})" if state.reason not in ("", "None") else ""
        return f"job {job} {'waiting' if waits else state.state.lower()}{why}"

    def _counts(self) -> Counter[str]:
        """Members of the array that are done, running, waiting and failed."""
        counts: Counter[str] = Counter()
        for index in range(self.members):
            state = self._states.get(index, JobState("")).state
            code = None if state in (*_RUNNING, *_WAITING, "COMPLETED") else self._outcome(index)
            if state in _RUNNING:
                counts["running"] += 1
            elif state == "COMPLETED" or code == 0:
                counts["done"] += 1
            elif state in _WAITING or (not state and code is None):
                counts["waiting"] += 1
            else:
                counts["failed"] += 1
        return counts

    def _work(self, reports: dict[int, _Report]) -> list[str]:
        """Units done, their rate and the time to the end; nothing before a job has said anything."""
        if self.members:  # other work inside a job, as reading photographs, is no part of the whole
            reports = {i: r for i, r in reports.items() if r.title.partition(" ")[0] == self.title.partition(" ")[0]}
        if not reports:
            return []
        unit = next(iter(reports.values())).unit
        done = self.done + sum(report.done for report in reports.values())
        total = self.total or self.done + sum(report.total for report in reports.values())
        rate = sum(report.rate for index, report in reports.items() if self._is_live(index, report))
        parts = [f"{done:,}/{total:,} {unit}"]
        if rate > 0:
            parts += [f"{rate:.3g} {unit}/s", f"ETA {clock(max(total - done, 0) / rate)}"]
        return parts

    def _is_live(self, index: int, report: _Report) -> bool:
        """Whether this attempt of a running job wrote the report; clocks of other machines are not trusted."""
        state = self._states.get(index)
        if state is None or state.state not in _RUNNING or self._left.get(index) == report.at:
            return False
        now = time.monotonic()
        at, since = self._fresh.get(index, (float("nan"), now))
        if at != report.at:
            since = now
        self._fresh[index] = (report.at, since)
        return now - since < STALE_SECONDS

    def _reports(self) -> dict[int, _Report]:
        found = {index: _read(self.folder / f"progress-{index}.json") for index in range(self.members or 1)}
        return {index: report for index, facts in found.items() if (report := _report(facts)) is not None}

    def _outcome(self, index: int) -> int | None:
        """Exit code that a member left when it ended; None: it has not."""
        code = _read(self.folder / f"outcome-{index}.json").get("code")
        return code if isinstance(code, int) else None


def _report(facts: dict) -> _Report | None:
    try:
        done, total = int(facts["done"]), int(facts["total"])
        return _Report(str(facts["title"]), done, total, str(facts["unit"]), float(facts["rate"]), float(facts["at"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> dict:
    """A small JSON file of a job; empty when it is not there, or is being replaced on another machine."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
