# SPDX-License-Identifier: Apache-2.0
"""Submits a tiny job to one or two nodes and talks with it through files, as the launcher does with real ones."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sis.config.cluster import SlurmSite
from sis.launch import doctor_probe as probe
from sis.launch.diagnosis import refused, stuck
from sis.launch.doctor_finding import Finding, bad, note
from sis.launch.doctor_site import Ask, ask
from sis.launch.doctor_verdict import judge
from sis.launch.queue import ENDED, JobState

_PREFIX = ".doctor-"
_FORGOTTEN = "FORGOTTEN"
#: Lines of a job's log that are not the job's own, the one that names a node, and how Python misses a folder.
_SLURMS_OWN = re.compile(r"(srun|slurmstepd[\w.-]*): ")
_FAILED_ON = re.compile(r"^srun: error: (\S+): task", re.MULTILINE)
_UNSEEN = re.compile(r"No such file or directory|Read-only file system|Permission denied")
_OVER = {*ENDED, "COMPLETING", _FORGOTTEN}
#: Seconds between two questions to the queue, and for a job to end that has nothing more to say.
_POLL, _SETTLE = 1.0, 10.0
#: Seconds that the words of a process that failed may take to its job's log.
_LAST_WORDS = 3


@dataclass(frozen=True)
class TinyJob:
    """A job that is tried. partition: empty for Slurm's default; gpu: whether it asks for one GPU a node."""

    partition: str
    nodes: int
    gpu: bool


@dataclass
class _Talk:
    """A conversation with a submitted job. deadline: by time.monotonic()."""

    job: str
    tiny: TinyJob
    site: SlurmSite
    folder: Path
    deadline: float
    say: Callable[[str], None]
    ask: Ask
    state: str = "PENDING"
    reason: str = ""
    nodes: str = ""
    host: str = ""
    running_since: float = 0.0
    finished: bool = False

    def look(self) -> None:
        """Ask the queue how the job is; a controller that does not answer changes nothing."""
        answer = self.ask("squeue", "-h", "-t", "all", "-j", self.job, "-o", "%T|%r|%N|%B")
        if answer.code and "Invalid job id" not in answer.text:
            return
        line = answer.out.strip().splitlines()[0] if answer.out.strip() else f"{_FORGOTTEN}|||"
        state, self.reason, nodes, host = line.split("|")[:4]
        self.nodes = nodes or self.nodes
        self.host = host if host not in ("", "n/a") else self.host
        if state == "RUNNING" and not self.running_since:
            self.running_since = time.monotonic()
        if state != self.state:
            self.say(f"job {self.job} is {state}" + (f" on {self.nodes}" if self.nodes else ""))
        self.state = state

    def leave(self) -> None:
        """Let a job that has said everything end by itself, and cancel any other."""
        until = time.monotonic() + (_SETTLE if self.finished else 0.0)
        while self.state not in _OVER and time.monotonic() < until:
            time.sleep(_POLL / 4)
            self.look()
        if self.state not in _OVER:
            self.ask("scancel", self.job)

    def answers(self, number: int) -> dict[int, dict[str, Any]] | Finding:
        """Every process's answer to a question with `seen`, the time of its arrival, or why there is none."""
        found: dict[int, dict[str, Any]] = {}
        looked = 0.0
        while len(found) < self.tiny.nodes:
            for rank in range(self.tiny.nodes):
                said = _read(probe.answer(self.folder, rank)) if rank not in found else None
                if said is not None and said["round"] == number:
                    found[rank] = {**said, "seen": time.time()}
            if time.monotonic() > looked + _POLL:
                self.look()
                looked = time.monotonic()
                if self.state in {*ENDED, _FORGOTTEN} and len(found) < self.tiny.nodes:
                    return self._ended()
                if silence := self._silence():
                    return silence
            time.sleep(probe.LOOK)
        return dict(sorted(found.items()))

    def _silence(self) -> Finding | None:
        now = time.monotonic()
        if why := stuck(JobState(self.state, self.reason, self.nodes)):
            return bad(
                f"job {self.job} does not start: {why}", "ask for something else: `slurm:` in config/config.yaml"
            )
        if now < self.deadline or (self.running_since and now < self.running_since + self.site.patience_seconds):
            return None
        if not self.running_since:
            text = f"job {self.job} is still {self.state} ({self.reason or 'no reason given'}): no node was tried"
            return note(text, "run this again when nodes are free, or with a longer --wait")
        text = f"job {self.job} runs on {self.nodes} and its files are not seen here within"
        fix = "put `artefacts:` on a file system that the nodes share, or raise `slurm: patience_seconds:`"
        return bad(f"{text} {self.site.patience_seconds:g} s: {self.folder.parent}", fix)

    def _ended(self) -> Finding:
        log = self.folder / "job.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        own = [line.strip() for line in text.splitlines() if line.strip() and not _SLURMS_OWN.match(line)]
        culprit = _FAILED_ON.search(text)
        node = culprit[1] if culprit else self.host or self.nodes or "no node"
        where = f"job {self.job} ended as {self.state} on {node}"
        shared = "keep the project and `artefacts:` on a file system that all nodes share"
        if not own:
            return bad(f"{where} and left no log: does the node see {self.folder.parent}?", shared)
        if _UNSEEN.search(own[-1]):
            return bad(f"{where}, which does not see {self.folder.parent} as it is here: {own[-1]}", shared)
        python = f"does {sys.executable} start there, with this project? `slurm: setup:` may prepare its shell"
        return bad(f"{where}: {own[-1]}", python)


def try_job(
    tiny: TinyJob, site: SlurmSite, root: Path, wait: float, say: Callable[[str], None], ask: Ask = ask
) -> Iterator[Finding]:
    """Submit one job, talk with it and judge what was seen; nothing of it is left behind.

    root: the shared folder, which exists. wait: seconds until a job that does not start is given up.
    """
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root)).resolve()
    try:
        with (folder / probe.LOCK).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                yield bad(f"no file can be locked in {root}: {error.strerror}", "use a file system with flock")
                return
            yield from _submitted(tiny, site, folder, (lock, wait), say, ask)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what doctors left that were killed; one that is at work holds its lock."""
    for old in root.glob(f"{_PREFIX}*"):
        with suppress(OSError), (old / probe.LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)


def _submitted(
    tiny: TinyJob, site: SlurmSite, folder: Path, held: tuple[IO[bytes], float],
    say: Callable[[str], None], ask: Ask,
) -> Iterator[Finding]:  # fmt: skip
    answer = ask(*sbatch_words(tiny, site, folder), script=script(site, folder))
    where = f"partition {tiny.partition or '(default)'}"
    if answer.code:
        error = refused(answer.err or answer.out, site)
        yield bad(f"{where}, a tiny job: {error.what}", error.fix)
        return
    job = answer.out.strip().split(";")[0]
    lock, wait = held
    say(f"job {job} tries {tiny.nodes} node{'s' * (tiny.nodes > 1)} of {where}")
    talk = _Talk(job, tiny, site, folder, time.monotonic() + wait, say, ask)
    try:
        yield from _converse(talk, lock)
    finally:
        talk.leave()


def _converse(talk: _Talk, lock: IO[bytes]) -> Iterator[Finding]:
    rounds: list[dict[int, dict[str, Any]]] = []
    asked: list[float] = []
    for number in range(probe.ROUNDS + 1):
        if number == probe.FREED:
            fcntl.flock(lock, fcntl.LOCK_UN)
        asked.append(time.time())
        if number:
            probe.replace(probe.question(talk.folder, number), "?")
        said = talk.answers(number)
        if isinstance(said, Finding):
            yield said
            return
        rounds.append(said)
    probe.replace(probe.question(talk.folder, probe.FAREWELL), "!")
    talk.finished = True
    yield from judge(talk.job, talk.tiny.gpu, talk.site, asked, rounds)


def sbatch_words(tiny: TinyJob, site: SlurmSite, folder: Path) -> list[str]:
    """The command that submits a tiny job as the site's settings ask for jobs."""
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    given = {
        "partition": tiny.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclude": site.exclude,
        "gres": f"gpu:{kind}1" if tiny.gpu else "",
        **site.extra,
    }
    own = {"job-name": "sis-doctor", "nodes": tiny.nodes, "ntasks-per-node": 1, "time": 5, "mem": "500M"}
    own |= {"output": folder / "job.log", "error": folder / "job.log"}
    options = [f"--{key}={value}" for key, value in {**given, **own}.items() if value != ""]
    return ["sbatch", "--parsable", "--no-requeue", *options]


def script(site: SlurmSite, folder: Path) -> str:
    """What a tiny job runs: the site's own lines, then the probe on every node.

    A process that fails ends the others after some seconds. At once (--kill-on-bad-exit) would cut off what it says:
    srun forwards lines one by one, and ends the step before the last of them has come.
    """
    step = ["srun", "--kill-on-bad-exit=0", f"--wait={_LAST_WORDS}"]
    run = shlex.join([*step, sys.executable, "-m", "sis.launch.doctor_probe", str(folder)])
    return "\n".join(["#!/bin/bash", *site.setup, f"exec {run}", ""])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
