# SPDX-License-Identifier: Apache-2.0
"""Slurm's queue: squeue for what the controller remembers, sacct for what it has forgotten."""

from __future__ import annotations

import os
import re
import subprocess

from sis.errors import SisError
from sis.launch.queue import ENDED, JobState, Unreachable

# Without a width, but with a sign after each field, nothing is cut.
_SQUEUE_FIELDS = "ArrayJobID:|,ArrayTaskID:|,State:|,exit_code:|,NodeList:|,Reason:|"
_SACCT_FIELDS = "JobID,State,ExitCode,NodeList,Reason"
# Personal settings of these commands would hide jobs or ask questions.
_PERSONAL = ("SQUEUE_", "SACCT_", "SCANCEL_")
_UNKNOWN = "Invalid job id"
_UNCONFIGURED = ("Could not establish a configuration source", "DNS SRV lookup failed", "cannot stat file")
_OVER = (_UNKNOWN, "already completing or completed", "already finished", "Job has already")


def parse_squeue(text: str) -> dict[int, JobState]:
    """States by index, of what `squeue -h -r -O` prints; lines of another shape (a cluster's name) are passed over."""
    states = {}
    for line in text.splitlines():
        fields = [f.strip() for f in line.split("|")]
        if len(fields) < 6 or not fields[0].isdigit():
            continue
        _, index, state, exit_code, nodes, reason = fields[:6]
        states[int(index) if index.isdigit() else 0] = JobState(
            _long(state), _said(reason), _said(nodes), _exit_code(exit_code) if _ended(state) else ""
        )
    return states


def parse_sacct(text: str) -> dict[int, JobState]:
    """States by index, of what `sacct -n -X -P` prints.

    A member that accounting believes to be alive is left out: sacct is asked only when the controller has forgotten
    the job, and accounting never hears of the end of a job that was lost.
    """
    states = {}
    for line in text.splitlines():
        fields = [f.strip() for f in line.split("|")]
        match = re.fullmatch(r"\d+(?:_(\d+|\[[^]]*\]))?(?:\+\d+)?", fields[0])
        if len(fields) < 5 or match is None:
            continue
        state, _, by = fields[1].partition(" ")
        reason = by or _said(fields[4])
        for index in _indices(match[1] or "0"):
            if _ended(state):
                states[index] = JobState(_long(state), reason, _said(fields[3]), fields[2])
    return states


def parse_names(text: str, name: str) -> list[str]:
    """Ids of the living jobs of a name, of what `squeue -h -t all -o "%F|%T|%j"` prints; an array's parent once."""
    found = set()
    for line in text.splitlines():
        fields = line.strip().split("|", 2)
        if len(fields) == 3 and fields[0].isdigit() and fields[2] == name and not _ended(fields[1]):
            found.add(int(fields[0]))
    return [str(job) for job in sorted(found)]


def need_cluster(errors: str) -> None:
    """Raise SisError if these are the errors of a command that knows of no cluster."""
    if any(words in errors for words in _UNCONFIGURED):
        fix = "log in to a machine of the cluster, set SLURM_CONF, or use --launcher inline"
        raise SisError("Slurm's commands are here, but they know of no cluster (no slurm.conf)", fix=fix)


class SlurmQueue:
    """Jobs of this user in Slurm. timeout: seconds after which a command has no answer."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout

    def states(self, job: str) -> dict[int, JobState] | None:
        """State of each member by index, a plain job's as 0.

        Members of an array that ended long ago (MinJobAge) are missing while others are still remembered. A controller
        that was started again has one state, as 0, for an array that was cancelled before any member began. Empty when
        neither the controller nor accounting knows how the job ended; None when the controller does not answer.
        """
        code, out, err = self._run("squeue", "-h", "-r", "-t", "all", "-j", job, "-O", _SQUEUE_FIELDS)
        if code == 0 and (states := parse_squeue(out)):
            return states
        if code == 0 or _UNKNOWN in err:
            return self._accounted(job)
        return None

    def find(self, name: str) -> list[str]:
        """Ids of this user's living jobs of a name. Raises Unreachable, and SisError where there is no Slurm."""
        code, out, err = self._run("squeue", "-h", "-t", "all", "--me", "-o", "%F|%T|%j", installed=True)
        need_cluster(err)
        if code != 0:
            raise _unreachable(f"whether a job {name!r} runs already is unknown", err)
        return parse_names(out, name)

    def cancel(self, job: str) -> None:
        """End a job with all its members; one that has ended already is fine. Raises Unreachable."""
        code, _, err = self._run("scancel", job)
        if code != 0 and not any(words in err for words in _OVER):
            raise _unreachable(f"job {job} was not cancelled", err, f"when it answers again: scancel {job}")

    def release(self, job: str) -> None:
        """Let a job start that was submitted held. Raises Unreachable, and SisError if there is no such job."""
        code, _, err = self._run("scontrol", "release", job)
        if code != 0 and any(words in err for words in _OVER):
            raise SisError(f"job {job} was gone before it could be released", fix="start the same command again")
        if code != 0:
            raise _unreachable(f"job {job} is held", err, f"when it answers again: scontrol release {job}")

    def waking(self, partition: str) -> bool:
        """Whether nodes of a partition (all, without a name) have not reported since the controller was started."""
        named = ("-p", partition) if partition else ()
        code, out, _ = self._run("sinfo", "-h", "-N", *named, "-o", "%T")
        return code == 0 and any(line.startswith("unknown") for line in out.splitlines())

    def _accounted(self, job: str) -> dict[int, JobState]:
        """What accounting knows of a job that the controller has forgotten; nothing where it is off or out of order."""
        code, out, _ = self._run("sacct", "-n", "-X", "-P", "-j", job, "-o", _SACCT_FIELDS)
        return parse_sacct(out) if code == 0 else {}

    def _run(self, *command: str, installed: bool = False) -> tuple[int, str, str]:
        """Exit code, output and errors of a command; -1 when it could not be run or did not answer in time."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_PERSONAL)}
        try:
            # A session of its own: Ctrl-C must not end the command that cancels a job.
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                check=False, timeout=self.timeout, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"").decode(errors="replace")
            return -1, "", f"{said}\n{command[0]} did not answer within {self.timeout:g} s"
        except OSError as error:
            if installed and isinstance(error, FileNotFoundError):
                fix = "log in to a machine of the cluster, or use --launcher inline"
                raise SisError(f"no Slurm on this machine: there is no command {command[0]}", fix=fix) from None
            return -1, "", str(error)
        return done.returncode, done.stdout, done.stderr


def _unreachable(what: str, words: str, fix: str = "try again when squeue answers") -> Unreachable:
    said = words.strip().splitlines()
    return Unreachable(f"{what}: Slurm's controller does not answer ({said[-1] if said else 'no words'})", fix=fix)


def _ended(state: str) -> bool:
    return _long(state) in ENDED


def _long(state: str) -> str:
    """A state without the marks of sacct (`CANCELLED+`)."""
    return state.rstrip("+*").upper()


def _said(field: str) -> str:
    return "" if field in {"None", "N/A", "(null)", "None assigned", "n/a", "Unknown"} else field


def _exit_code(field: str) -> str:
    """squeue's wait status (35072) as sacct writes it: exit code, colon, signal (137:0)."""
    if not field.isdigit():
        return field if ":" in field else ""
    status = int(field)
    return f"{os.waitstatus_to_exitcode(status)}:0" if status & 0x7F == 0 else f"0:{status & 0x7F}"


def _indices(text: str) -> list[int]:
    """Indices of array members: `3`, or `[0-2,5%4]` of those that were never started."""
    found: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int((last or first).partition(":")[0]) + 1)
    return found
