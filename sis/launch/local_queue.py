# SPDX-License-Identifier: Apache-2.0
"""The queue of this machine: processes, known by their number and the moment when they started."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from sis.launch.queue import JobState

#: Name of the variable that carries a launch's name into its processes.
JOB_NAME_VARIABLE = "SIS_JOB_NAME"
#: Seconds between the request to end and the end by force.
_GRACE = 5.0
_STARTED, _STATE = 19, 0


class LocalQueue:
    """Processes as jobs; the members of an array are joined by `+`, each `<pid>@<start>`."""

    def states(self, job: str) -> dict[int, JobState] | None:
        """RUNNING for what is alive; what ended is left out."""
        found = {i: _alive(one) for i, one in enumerate(job.split("+"))}
        return {i: JobState("RUNNING", nodes="here") for i, alive in found.items() if alive}

    def find(self, name: str) -> list[str]:
        """The living controllers of a launch, as one job."""
        ours = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
                if f"{JOB_NAME_VARIABLE}={name}".encode() in variables and b"submitit.local._local" in command:
                    ours.append(process_id(int(folder.name)))
        return ["+".join(sorted(ours))] if ours else []

    def cancel(self, job: str) -> None:
        """Ask the controllers to end their processes; those that do not are killed."""
        living = [one for one in job.split("+") if _alive(one)]
        for one in living:
            _signal(one, signal.SIGINT)
        deadline = time.monotonic() + _GRACE
        while any(_alive(one) for one in living) and time.monotonic() < deadline:
            time.sleep(0.05)
        for one in living:
            if _alive(one):
                _signal(one, signal.SIGKILL)

    def release(self, job: str) -> None:
        """Nothing is held here."""


def process_id(pid: int) -> str:
    """A process as no other one will ever be called on this machine until it is started anew."""
    return f"{pid}@{_stat(pid)[_STARTED]}" if _stat(pid) else f"{pid}@0"


def _alive(one: str) -> bool:
    pid, _, started = one.partition("@")
    facts = _stat(int(pid))
    return bool(facts) and facts[_STARTED] == started and facts[_STATE] not in "ZX"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _signal(one: str, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(int(one.partition("@")[0]), number)
