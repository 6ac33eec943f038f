# SPDX-License-Identifier: Apache-2.0
"""A project whose training takes long enough to be interrupted, and the commands that launch it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cluster_control import Cluster, until
from project_copy import Project, copy_project

RUN = "sdm-s1.5"
PAIRS = "artefacts/pairs/scenes_tiny"
#: A training of half a minute that writes no state unless it is told to stop.
STEPS = 200


@dataclass
class Bench:
    """A project, perhaps a cluster, and the heads that were started."""

    project: Project
    known: Cluster | None
    heads: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def cluster(self) -> Cluster:
        assert self.known is not None
        return self.known

    @property
    def folder(self) -> Path:
        return self.project.folder

    @property
    def environment(self) -> dict[str, str]:
        ours = {key: value for key, value in self.project.environment().items() if key.startswith(("P", "OMP"))}
        return {**(self.known.environment if self.known else os.environ), **ours}

    def configure(self, **slurm: Any) -> None:
        """Change the site's `slurm:` section."""
        path = self.folder / "config" / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**settings, "slurm": {**settings.get("slurm", {}), **slurm}}))

    def experiment(self, **changes: Any) -> None:
        """Change the tiny experiment."""
        path = self.folder / "config" / "experiments" / "tiny.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    def training(self, out: str = "model", launcher: str = "slurm") -> list[str]:
        """The command that trains into a folder."""
        words = [sys.executable, "-m", "sis", "train", "--experiment", "tiny", "--dataset", "scenes_tiny"]
        words += ["--run", RUN, "--pairs", f"{PAIRS}/train", "--device", "cpu", "--launcher", launcher]
        return [*words, "--out", f"{out}/model.safetensors"]

    def sampling(self, out: str, model: str, shards: int = 4, launcher: str = "slurm") -> list[str]:
        """The command that samples into a folder with a trained model."""
        words = [sys.executable, "-m", "sis", "sample", "--experiment", "tiny", "--dataset", "scenes_tiny"]
        words += ["--run", RUN, "--pairs", f"{PAIRS}/val", "--device", "cpu", "--launcher", launcher]
        return [*words, "--model", f"{model}/model.safetensors", "--shards", str(shards), "--out", out]

    def run(self, words: list[str], timeout: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stderr is part of stdout."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout
        return done

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a head in a session of its own, as a terminal would; what it says goes to head-N.txt."""
        log = (self.folder / f"head-{len(self.heads)}.txt").open("w")
        head = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        self.heads.append(head)
        return head

    def said(self, head: subprocess.Popen[str]) -> str:
        return (self.folder / f"head-{self.heads.index(head)}.txt").read_text()

    def ended(self, head: subprocess.Popen[str], timeout: float = 240) -> int:
        """The exit code of a head."""
        try:
            return head.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the head did not end:\n{self.said(head)}") from None

    def kill(self, head: subprocess.Popen[str], number: signal.Signals) -> int:
        """Send a signal to a head and everything it started, as a terminal does."""
        os.killpg(head.pid, number)
        return self.ended(head)

    def launch(self, out: str) -> Path:
        return self.folder / out / "work" / "launch"

    def job(self, out: str) -> str:
        """Id of the recorded job."""
        until((self.launch(out) / "job.json").exists, 120, "a job is recorded")
        return json.loads((self.launch(out) / "job.json").read_text())["job"]

    def events(self, out: str) -> list[dict[str, Any]]:
        path = self.launch(out) / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def done(self, out: str, index: int = 0) -> int:
        """Steps or images that a job has reported since its submission."""
        attempt = json.loads((self.launch(out) / "job.json").read_text())["attempt"]
        path = self.launch(out) / str(attempt) / f"progress-{index}.json"
        return json.loads(path.read_text())["done"] if path.exists() else 0

    def reaches(self, out: str, steps: int, index: int = 0) -> None:
        """Wait until a job has done so many steps or images."""
        until(lambda: self.job(out) and self.done(out, index) >= steps, 120, f"{out} reaches {steps}")

    def starts(self, out: str, count: int, index: int = 0) -> None:
        """Wait until processes of a job have started so often."""

        def started() -> int:
            return sum(event["event"] == "start" and event["index"] == index for event in self.events(out))

        until(lambda: started() >= count, 120, f"{out} starts {count} times")

    def process(self, out: str, index: int = 0) -> int:
        """The process of a job that started last."""
        return [e["pid"] for e in self.events(out) if e["event"] == "start" and e["index"] == index][-1]

    def weights(self, out: str) -> str:
        return hashlib.sha256((self.folder / out / "model.safetensors").read_bytes()).hexdigest()

    def never_two(self, out: str) -> None:
        """No two processes of one job index were ever at work at the same time, by what they wrote down themselves."""
        open_: dict[int, bool] = {}
        for event in self.events(out):
            index = event["index"]
            # A job that was killed writes no end; its next start names a later restart or submission.
            assert event["event"] != "start" or not open_.get(index) or self._killed_before(out, event), event
            open_[index] = event["event"] == "start"

    def _killed_before(self, out: str, event: dict[str, Any]) -> bool:
        before = [e for e in self.events(out) if e["at"] < event["at"] and e["index"] == event["index"]]
        last = before[-1]
        return (last["submission"], last["restart"]) != (event["submission"], event["restart"])


def make_bench(folder: Path, cluster: Cluster | None, like: Bench | None = None) -> Bench:
    """A project with prepared pairs, those of another one if there is one, and a training that can be interrupted."""
    folder.mkdir(parents=True)
    bench = Bench(copy_project(folder), cluster)
    bench.configure(
        poll_seconds=0.3, patience_seconds=8.0, signal_seconds=60, partition="low", cpu_partition="low", resubmits=2
    )
    path = folder / "config" / "experiments" / "tiny.yaml"
    experiment = yaml.safe_load(path.read_text())
    fit = {**experiment["runs"][RUN]["fit"], "steps": STEPS, "checkpoint_every": 10_000}
    runs = {RUN: {"method": "sdm", "fit": fit, "sample": {"steps": 25, "guidance": 1.5}}}
    cards = {stage: {"gpus": 1, "memory_gb": 2.0, "hours": 2.0} for stage in ("train", "sample")}
    bench.experiment(runs=runs, rule_methods="none", cluster=cards, samples_per_map=4, batch_size=4)
    if like is not None:
        shutil.copytree(like.folder / PAIRS, folder / PAIRS)
        return bench
    for split in ("train", "val"):
        words = [sys.executable, "-m", "sis", "prepare", "--dataset", "scenes_tiny", "--split", split]
        bench.run([*words, "--out", f"{PAIRS}/{split}"])
    return bench
