# SPDX-License-Identifier: Apache-2.0
"""The tiny job of `sis doctor`: how it is asked for, how it may end, and what a conversation with it tells."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from recorded_slurm import Recorded, demand, facts, only

from sis.config.cluster import SlurmSite
from sis.launch import doctor_probe as probe
from sis.launch.doctor import tiny_jobs
from sis.launch.doctor_finding import Finding
from sis.launch.doctor_jobs import TinyJob, sbatch_words, script, try_job
from sis.launch.doctor_probe import ROUNDS
from sis.launch.doctor_site import Answer
from sis.launch.doctor_verdict import judge


def test_tiny_jobs_go_to_every_partition_on_nodes_that_work() -> None:
    site = SlurmSite(partition="low", cpu_partition="main")
    asked = [demand(), demand(gpus=0)]
    assert tiny_jobs(asked, facts(), site, frozenset()) == [TinyJob("low", 1, True), TinyJob("main", 2, False)]
    assert tiny_jobs(asked, facts(), SlurmSite(), frozenset({"n1"})) == [TinyJob("main", 1, True)]


def test_a_tiny_job_asks_as_the_site_does(tmp_path: Path) -> None:
    site = SlurmSite(account="lab", gpu_type="a100", exclude="n3", setup=["module load cuda"], extra={"nice": "5"})
    words = sbatch_words(TinyJob("low", 2, True), site, tmp_path)
    assert {"--partition=low", "--account=lab", "--gres=gpu:a100:1", "--exclude=n3", "--nice=5", "--nodes=2"} <= set(
        words
    )
    assert not any(word.startswith("--qos") for word in words)
    assert script(site, tmp_path).splitlines()[:2] == ["#!/bin/bash", "module load cuda"]


def tried(root: Path, wait: float, **answers: Answer | str) -> tuple[list[Finding], Recorded]:
    recorded = Recorded({name.replace("_", " "): text for name, text in answers.items()})
    found = list(
        try_job(TinyJob("main", 1, False), SlurmSite(patience_seconds=0.1), root, wait, lambda _: None, recorded)
    )
    assert not list(root.iterdir()), "the tiny job's folder is left"
    return found, recorded


def test_a_tiny_job_that_is_refused(tmp_path: Path) -> None:
    found, recorded = tried(tmp_path, 0, sbatch=Answer(1, "", "sbatch: error: Invalid account"))
    assert [f.level for f in found] == ["bad"] and "Invalid account" in found[0].text
    assert not any(line.startswith("scancel") for line in recorded.asked)


def test_a_tiny_job_that_waits_is_cancelled(tmp_path: Path) -> None:
    found, recorded = tried(tmp_path, 0.1, sbatch="12;sistest3\n", squeue="PENDING|Resources||n/a\n", scancel="")
    assert [f.level for f in found] == ["note"] and "job 12 is still PENDING (Resources)" in found[0].text
    assert recorded.asked[-1] == "scancel 12"


def test_a_tiny_job_that_never_starts(tmp_path: Path) -> None:
    found, _ = tried(tmp_path, 600, sbatch="12\n", squeue="PENDING|PartitionTimeLimit||n/a\n", scancel="")
    assert [f.level for f in found] == ["bad"] and "job 12 does not start" in found[0].text


def test_a_tiny_job_whose_files_are_not_seen(tmp_path: Path) -> None:
    found, _ = tried(tmp_path, 0.1, sbatch="12\n", squeue="RUNNING|None|n1|n1\n", scancel="")
    assert [f.level for f in found] == ["bad"] and "runs on n1 and its files are not seen here" in found[0].text


def test_a_tiny_job_that_fails_without_a_log(tmp_path: Path) -> None:
    found, _ = tried(tmp_path, 60, sbatch="12\n", squeue="FAILED|NonZeroExitCode|n[1-2]|n1\n", scancel="")
    assert "job 12 ended as FAILED on n1 and left no log" in found[0].text
    gone, _ = tried(
        tmp_path, 60, sbatch="12\n", squeue=Answer(1, "", "slurm_load_jobs error: Invalid job id specified")
    )
    assert "ended as FORGOTTEN" in gone[0].text


def test_no_process_of_the_tiny_job_leaves_before_the_farewell(tmp_path: Path) -> None:
    (tmp_path / probe.LOCK).touch()
    job = subprocess.Popen(
        [sys.executable, "-m", probe.__name__, str(tmp_path)], env={**os.environ, "SLURM_PROCID": "1"}
    )
    deadline = time.monotonic() + 60
    for number in range(ROUNDS + 1):
        probe.question(tmp_path, number).touch()
        while not (said := probe.answer(tmp_path, 1)).exists() or json.loads(said.read_text())["round"] != number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(0.3)
    probe.question(tmp_path, probe.FAREWELL).touch()
    assert job.wait(60) == 0


def test_what_a_killed_doctor_left_goes_and_a_living_one_stays(tmp_path: Path) -> None:
    for name in (".doctor-dead", ".doctor-alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    with (tmp_path / ".doctor-alive" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refusing = Recorded({"sbatch": Answer(1, "", "sbatch: error: no")})
        list(try_job(TinyJob("main", 1, False), SlurmSite(), tmp_path, 0, lambda _: None, refusing))
    assert [path.name for path in tmp_path.iterdir()] == [".doctor-alive"]


def conversation(
    late: float = 0.01, skew: float = 0.0, **said: str
) -> tuple[list[float], list[dict[int, dict[str, Any]]]]:
    asked = [100.0 + n for n in range(ROUNDS + 1)]
    usual = {"node": "n1", "python": platform.python_version(), "gpus": "0"}
    rounds = [{0: {**usual, "lock": "held", "at": t + late / 2 + skew, "seen": t + late, **said}} for t in asked]
    rounds[-1][0]["lock"] = said.get("lock", "free")
    return asked, rounds


def test_what_a_conversation_tells() -> None:
    site = SlurmSite()
    assert {f.level for f in judge("12", True, site, *conversation())} == {"ok"}
    assert only(judge("12", False, site, *conversation(late=70.0)), "shared folder").level == "bad"
    assert only(judge("12", False, site, *conversation(late=20.0)), "shared folder").level == "note"
    assert only(judge("12", False, site, *conversation(lock="free")), "flock").level == "note"
    assert (
        "No locks available" in only(judge("12", False, site, *conversation(lock="No locks available")), "flock").text
    )
    assert only(judge("12", False, site, *conversation(skew=3.0)), "clocks: n1 is +3.000 s").level == "note"
    # A slow answer leaves the clock unknown by half its time: no false alarm.
    assert only(judge("12", False, site, *conversation(late=8.0, skew=3.0)), "clocks").level == "ok"
    assert only(judge("12", False, site, *conversation(python="3.9.1")), "run Python 3.9.1").level == "bad"
    assert only(judge("12", True, site, *conversation(gpus="")), "CUDA_VISIBLE_DEVICES is empty").level == "bad"
