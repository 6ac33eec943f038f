# SPDX-License-Identifier: Apache-2.0
"""A real Slurm for tests: controller, several virtual nodes and fake GPUs on one machine, below a folder of its own.

`cluster/start-slurm` writes the configuration; SLURM_CONF leads every command to it. SLURM_TEST_ROOT and
SLURM_TEST_NUMBER (ports) allow several clusters side by side.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "cluster"
#: Why tests are skipped where Slurm cannot be installed; `.ci/run` looks for these words.
SKIPPED = "skipped: no Slurm"


def usable() -> bool:
    """Whether this machine can run the daemons: they need root."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch"))


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until `true()`; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """A running cluster. root: its folder; number: its ports."""

    root: Path
    number: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands speak to this cluster."""
        own = {"SLURM_TEST_ROOT": str(self.root), "SLURM_TEST_NUMBER": str(self.number)}
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        return {**outside, **own, "SLURM_CONF": str(self.root / "etc" / "slurm.conf")}

    def start(self, *options: str) -> None:
        """Start it, or start what died of it; other options restart it."""
        self._script("start-slurm", *options)

    def stop(self, purge: bool = False) -> None:
        """Cancel its jobs and stop its daemons."""
        self._script("stop-slurm", *(["--purge"] if purge else []))

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a command of Slurm; returns what it prints."""
        done = subprocess.run(
            command, env=self.environment, text=True, timeout=timeout, check=False, capture_output=True
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self, states: str = "all") -> dict[str, str]:
        """State of every job that the controller remembers, by id (an array's member as `12_3`)."""
        lines = self.run("squeue", "-h", "-r", "-t", states, "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def pid(self, daemon: str) -> int:
        """Process of a daemon: slurmctld, slurmd.n1, ..."""
        return int((self.root / "run" / f"{daemon}.pid").read_text())

    def preempt(self, job: str) -> str:
        """Take all GPUs of the node where a job of partition `low` runs, for one second; returns the taker's id."""
        node = self.run("squeue", "-h", "-j", job, "-o", "%N")
        gpus = self.run("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%G").split(":")[-1].split("(")[0]
        words = ("sbatch", "--parsable", "-p", "high", "-w", node, f"--gres=gpu:{gpus}", "-o", "/dev/null")
        return self.run(*words, "--wrap", "sleep 1")

    def hurry(self, job: str) -> None:
        """Let a job that was requeued start at once instead of two minutes later."""
        until(lambda: self.jobs().get(job) == "PENDING", 60, f"job {job} is pending again")
        self.run("scontrol", "update", f"jobid={job}", "starttime=now")

    def submit(self, command: str, *options: str, log: Path = Path("/dev/null")) -> str:
        """Submit a shell command, its output in `log` (`%j` is the id); returns the job's id."""
        return self.run("sbatch", "--parsable", "-o", str(log), *options, "--wrap", command)

    def time_out(self, job: str) -> None:
        """Let the time limit of a running job pass; the controller looks every half minute."""
        self.run("scontrol", "update", f"jobid={job}", "endtime=now+1seconds")

    def kill_node(self, node: str) -> None:
        """End a node at once with all that runs on it; `start` brings it back."""
        self._script("kill-node", node)

    @contextmanager
    def blind(self, node: str, folder: Path) -> Iterator[None]:
        """Let jobs of a node see an empty, read-only folder in place of `folder`."""
        self._script("hide-folder", node, str(folder))
        try:
            yield
        finally:
            self._script("hide-folder", node)

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """Stop the controller, and start it again afterwards; jobs go on."""
        self._end_controller()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def unheard_nodes(self, *nodes: str) -> Iterator[None]:
        """Start the controller again while nodes are dead, so that it has not heard of them; they come back after."""
        for node in nodes:
            self.kill_node(node)
        try:
            self._end_controller()
            self.run("slurmctld")
            until(lambda: "unknown" in self.run("sinfo", "-h", "-N", "-o", "%T", check=False), 60, "nodes are unknown")
            yield
        finally:
            self.start()

    def _end_controller(self) -> None:
        pid = self.pid("slurmctld")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists(), 60, "the controller has ended")

    def _script(self, name: str, *options: str) -> None:
        done = subprocess.run(
            [SCRIPTS / name, *options], env=self.environment, text=True, check=False, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
