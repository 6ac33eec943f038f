# SPDX-License-Identifier: Apache-2.0
"""`sis gc`: what dead runs left below the artefacts, found and removed without touching what is alive or finished.

Only two kinds of things are ever removed: what lies in a work area (the folder `work` beside an artefact), and
temporary files by their names. Locks stay, so that nobody holds the lock of a file that has gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sis.data.atomic import this_host
from sis.project.garbage_named import Named

#: Whether a job is alive, by launcher and id; None when nobody can tell.
Alive = Callable[[str, str], bool | None]

_TEMPORARY = re.compile(r"\..+\.tmp-(?:(?P<host>[0-9a-f]{8})-)?(?P<pid>\d+)")
_TRASH = re.compile(r"\.gc-\d+-.+")
#: What a head that starts again asks for: which job it was, how its members ended, the result's second name.
_KEPT_IN_WORK = re.compile(r".*\.lock|\.lock|.*\.spare|launch")
_KEPT_IN_LAUNCH = re.compile(r"\.lock|job\.json|events\.jsonl")
_KEPT_IN_SUBMISSION = re.compile(r"outcome-\d+\.json")
_DECLARED = {"models": ("model.safetensors", "model.safetensors.manifest.json"), "images": ("manifest.json",)}


@dataclass(frozen=True)
class Leftover:
    """Something that nothing needs any more.

    place: what to call it: itself, or the work area that it is in. paths: what goes. size: bytes that this sets free.
    """

    place: Path
    paths: tuple[Path, ...]
    size: int
    why: str


@dataclass(frozen=True)
class Survey:
    """What can go, and what stays though it looks alike, with why."""

    leftovers: list[Leftover] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all leftovers."""
        return sum(one.size for one in self.leftovers)


@dataclass(frozen=True)
class Collector:
    """Looks below a root of artefacts.

    named: what experiments name. alive: asked about jobs. hours: what changed since then stays, if it is a temporary
    file or of a work area that no experiment names.
    """

    root: Path
    named: Named
    alive: Alive
    hours: float = 24.0

    def survey(self) -> Survey:
        """Everything that can go; changes nothing."""
        found = Survey()
        for kind in _DECLARED:
            for area in sorted(self.root.glob(f"{kind}/*/*/work")):
                self._look(area, found)
        inside = {path for one in found.leftovers for path in one.paths}
        for path in self._scattered():
            if not inside & {path, *path.parents}:
                self._look_at_scattered(path, found)
        return found

    def remove(self, one: Leftover) -> int:
        """Remove a leftover as far as it still is one; returns the bytes that this set free."""
        again, area = Survey(), one.place if one.place.name == "work" else None
        if area is None:
            self._look_at_scattered(one.place, again)
        else:
            self._look(area, again)
        still, freed = {path for other in again.leftovers for path in other.paths}, 0
        with _all_locks(area) as free:
            for path in one.paths if free else ():
                if path in still:
                    size = _size(path)
                    _erase(path)
                    freed += size
        return freed

    def _look(self, area: Path, found: Survey) -> None:
        """Sort what a work area holds into what can go and what stays."""
        reason = self._in_use(area)
        if reason:
            found.kept.append((area, reason))
            return
        folder = area.parent
        declared = [folder / name for name in _DECLARED[folder.parts[-3]]]
        finished = all(path.is_file() for path in declared)
        if folder.relative_to(self.root).as_posix() not in self.named.folders:
            self._look_at_unnamed(area, finished, found)
            return
        if finished:
            end = max(path.stat().st_mtime for path in declared)
            old = [p for p in _entries(area) if not _KEPT_IN_WORK.fullmatch(p.name) and _changed(p) <= end]
            _add(found, area, old, "of finished work")
        _add(found, area, list(self._launch_leftovers(area / "launch", finished)), "of jobs that have ended")

    def _look_at_unnamed(self, area: Path, finished: bool, found: Survey) -> None:
        if not _size(area):
            return  # locks, and second names of what is finished
        if self.named.unread:
            found.kept.append((area, f"no readable experiment names it, {self.named.unread[0]} cannot be read"))
        elif not finished and any(area.glob("*.spare")):
            found.kept.append((area, "it holds the only copy of a finished result that no experiment names"))
        elif self._is_recent(area):
            found.kept.append((area, f"no experiment names it, and it changed within {self.hours:g} hours"))
        else:
            _add(found, area, [area], "no experiment names what it is of")

    def _launch_leftovers(self, launch: Path, finished: bool) -> Iterator[Path]:
        """Logs and submitit's files of submissions that have ended; those of the last one stay until all is made."""
        record = _record(launch)
        if record is None:
            return
        last = Path(str(record.get("folder", ""))).name
        for path in _entries(launch):
            if path.name != last and path.is_dir() and path.name.isdigit():
                yield path
            elif finished and path.name == last and path.is_dir():
                yield from (p for p in _entries(path) if not _KEPT_IN_SUBMISSION.fullmatch(p.name))
            elif finished and not path.is_dir() and not _KEPT_IN_LAUNCH.fullmatch(path.name):
                yield path

    def _in_use(self, area: Path) -> str:
        """Why a work area is left alone; empty when nobody uses it."""
        if area.is_symlink() or not area.is_dir():
            return "it is no folder of its own"
        reason = self._job_in_use(area / "launch")
        if reason:
            return reason
        # Last, and for a moment only: whoever wants a lock while it is tried is refused.
        with _all_locks(area) as free:
            return "" if free else "another process is at work here"

    def _job_in_use(self, launch: Path) -> str:
        if not (launch / "job.json").exists():
            return ""
        record = _record(launch)
        if record is None:
            return "the record of its job cannot be read"
        launcher, job = str(record.get("launcher", "")), str(record.get("job", ""))
        if launcher == "local" and _host(launch / ".lock") not in ("", socket.gethostname()):
            return f"its job runs, or ran, on {_host(launch / '.lock')}: look there"
        alive = self.alive(launcher, job)
        if alive is None:
            return f"nobody can tell whether its job {job} is alive: the queue does not answer"
        return f"its job {job} is alive" if alive else ""

    def _scattered(self) -> Iterator[Path]:
        """Temporary files and folders, and what a killed clean-up left, wherever they lie."""
        for top, folders, files in os.walk(self.root):
            for name in sorted([*folders, *files]):
                if _TEMPORARY.fullmatch(name) or _TRASH.fullmatch(name):
                    yield Path(top) / name
            folders[:] = [n for n in folders if not (_TEMPORARY.fullmatch(n) or _TRASH.fullmatch(n))]

    def _look_at_scattered(self, path: Path, found: Survey) -> None:
        if not (path.exists() or path.is_symlink()):
            return
        if _TRASH.fullmatch(path.name):
            _add(found, path, [path], "of a clean-up that was killed")
            return
        match = _TEMPORARY.fullmatch(path.name)
        areas = [p for p in path.parents if p.name == "work" and self.root in p.parents]
        if match is None or (areas and self._in_use(areas[-1])):
            return
        here = match["host"] in (None, this_host())
        if self._is_recent(path) or (here and Path(f"/proc/{match['pid']}").exists()):
            found.kept.append((path, f"its writer may be alive, or wrote within {self.hours:g} hours"))
        else:
            _add(found, path, [path], "half written by a dead process")

    def _is_recent(self, path: Path) -> bool:
        return time.time() - _changed(path) < self.hours * 3600


@contextmanager
def _all_locks(area: Path | None) -> Iterator[bool]:
    """Hold every lock of a work area; yields False, holding none, when somebody else has one of them."""
    with ExitStack() as stack:
        try:
            for path in sorted(area.rglob("*.lock")) if area is not None else ():
                handle = stack.enter_context(path.open("r+b"))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            stack.close()
            free = False
        yield free


def _add(found: Survey, place: Path, paths: list[Path], why: str) -> None:
    if paths:
        found.leftovers.append(Leftover(place, tuple(paths), sum(_size(path) for path in paths), why))


def _erase(path: Path) -> None:
    """Remove a file at once, a folder under another name: whoever is killed in between leaves no half of it."""
    if path.is_dir() and not path.is_symlink():
        trash = path if _TRASH.fullmatch(path.name) else path.with_name(f".gc-{os.getpid()}-{path.name.lstrip('.')}")
        if trash != path:
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes of a file or folder; what has a second name elsewhere counts nothing."""
    if path.is_dir() and not path.is_symlink():
        return sum(_size(inner) for inner in _entries(path))
    with suppress(OSError):
        facts = path.lstat()
        return facts.st_size if facts.st_nlink == 1 else 0
    return 0


def _changed(path: Path) -> float:
    """When a file, or any file in a folder, changed last; a folder by itself changes when a leftover in it goes."""
    inside = _entries(path) if path.is_dir() and not path.is_symlink() else []
    if inside:
        return max(_changed(inner) for inner in inside)
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _record(launch: Path) -> dict[str, object] | None:
    """The record of a submission; None when there is none that can be read."""
    try:
        facts = json.loads((launch / "job.json").read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def _host(lock: Path) -> str:
    """The machine of the head that held a lock last; empty when unknown."""
    try:
        return str(json.loads(lock.read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
