# SPDX-License-Identifier: Apache-2.0
"""What launchers and their jobs write down for each other, as JSON; nothing here is ever unpickled."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sis.data.atomic import write_text_atomic
from sis.errors import SisError


@dataclass(frozen=True)
class Record:
    """The submission that a launch folder belongs to (`job.json`).

    job: its id. name: unique for what it makes. key: of everything that decides the result. attempt: number of the
    submission. folder: its files. members: of each job, what it makes (shards).
    """

    launcher: str
    job: str
    name: str
    key: str
    argv: list[str]
    attempt: int
    folder: str
    submitted: float
    members: list[list[int]] = field(default_factory=list)

    def save(self, launch: Path) -> None:
        """Write it, whole or not at all."""
        write_text_atomic(launch / "job.json", json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, launch: Path) -> Self | None:
        """The record of a launch folder; None when there is none. Raises SisError for one that cannot be read."""
        path = launch / "job.json"
        facts = _read(path)
        try:
            return None if facts is None else cls(**facts)
        except TypeError as error:
            raise SisError("not a record of a job", where=path, fix="delete it if no such job is running") from error


@dataclass(frozen=True)
class Outcome:
    """How a job ended by itself (`outcome-<index>.json`): its exit code, where it ran and for how long."""

    code: int
    job: str
    host: str
    seconds: float

    def save(self, folder: Path, index: int) -> None:
        """Write it, whole or not at all."""
        write_text_atomic(folder / f"outcome-{index}.json", json.dumps(dataclasses.asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path, index: int) -> Self | None:
        """The outcome of a job; None as long as there is none that can be read."""
        try:
            facts = _read(folder / f"outcome-{index}.json")
            return None if facts is None else cls(**facts)
        except (SisError, TypeError):
            return None


def note_event(folder: Path, index: int, event: str) -> None:
    """Add a line to the launch folder's `events.jsonl`: a process of a job started, ended, or was queued again."""
    facts: dict[str, Any] = {"event": event, "submission": folder.name, "index": index, "at": round(time.time(), 3)}
    facts |= {"job": os.environ.get("SLURM_JOB_ID", ""), "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}
    facts |= {"host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "pid": os.getpid()}
    line = json.dumps(facts) + "\n"
    try:
        # One short write in append mode: lines of several jobs do not mix.
        with (folder.parent / "events.jsonl").open("a") as handle:
            handle.write(line)
    except OSError:
        return  # A full disk is reported by the work itself.


def events(launch: Path) -> list[dict[str, Any]]:
    """All events of a launch folder, the oldest first."""
    path = launch / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@functools.cache
def source_digest() -> str:
    """Digest of the sources of this package: what a job would import."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SisError("unreadable record", where=path, fix="delete it if no such job is running") from error
    if not isinstance(facts, dict):
        raise SisError("not a record of a job", where=path, fix="delete it if no such job is running")
    return facts
