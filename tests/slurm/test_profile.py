# SPDX-License-Identifier: Apache-2.0
"""Whole workflows under the slurm profile: equal results, the site's partitions and GPUs, outages and ends."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_control import Cluster, until
from flow import Flow, results
from launching import PAIRS, make_bench
from project_copy import Project, copy_project

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.workflow]

#: Four shards of three kinds of method; the fake GPUs are asked for by the experiment, above the dataset's card.
SHARDS = """
name: shards
title: Four shards of three methods
datasets: {scenes_tiny: {protocol: scenes-tiny}}
runs:
  sdm:
    method: sdm
    fit: {width: 8, multipliers: [1, 2], blocks: 1, attention: [2], head_channels: 8, spade_hidden: 8, steps: 12,
          batch_size: 4, learning_rate: 0.001, ema: 0.9, checkpoint_every: 5, diffusion_steps: 50}
    sample: {steps: 4}
  class-mean: {method: class_mean}
  segment-noise: {method: segment_noise}
batch_size: 4
shard_size: 4
cluster: {train: {gpus: 1}, sample: {gpus: 1}, evaluate: {gpus: 1}}
"""


@pytest.fixture
def flow(cluster: Cluster, tmp_path: Path) -> Iterator[Flow]:
    """A project without artefacts; GPUs are in one partition, CPUs in another."""
    folder = tmp_path / "project"
    folder.mkdir()
    flow = Flow(copy_project(folder), cluster)
    flow.configure(partition="main", cpu_partition="high", poll_seconds=1.0)
    (flow.folder / "config/experiments/shards.yaml").write_text(SHARDS)
    yield flow
    for head in flow.heads:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.fixture
def training(cluster: Cluster, tmp_path: Path) -> Iterator[Flow]:
    """A project with prepared pairs and a training of half a minute."""
    flow = Flow(make_bench(tmp_path / "project", cluster).project, cluster)
    flow.configure(poll_seconds=1.0)
    yield flow
    for head in flow.heads:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def run_locally(folder: Path, experiment: str, text: str = "") -> Project:
    """The same experiment with the local profile."""
    folder.mkdir()
    project = copy_project(folder)
    if text:
        (folder / f"config/experiments/{experiment}.yaml").write_text(text)
    profile = ["--profile", "workflow/profiles/local", "--cores", "2"]
    project.run("snakemake", *profile, "--config", f"experiment={experiment}")
    return project


@pytest.mark.parametrize("experiment", ["shards", "tiny"])
def test_an_experiment_scores_as_with_the_local_profile(flow: Flow, tmp_path: Path, experiment: str) -> None:
    head = flow.start(flow.snakemake(experiment))
    assert flow.ended(head, timeout=900) == 0, flow.said(head)[-6000:]
    asked = flow.asked()
    local = run_locally(tmp_path / "local", experiment, SHARDS if experiment == "shards" else "")
    here, there = results(flow.folder, experiment), results(local.folder, experiment)
    assert here == there
    assert len(here["scores"]) == (4 if experiment == "shards" else 11) and here["weights"]  # pyright: ignore
    if experiment == "shards":
        launched = asked[asked.name.str.startswith("sis-")]
        assert sorted(Counter(launched.job).values()) == [1, 4, 4, 4], "a training, and an array for each method"
        assert set(launched.partition) == {"main"} and launched.gpus.str.endswith("gpu:1").all(), launched
        native = asked[~asked.name.str.startswith("sis-")]
        with_gpu = native[native.gpus.str.endswith("gpu:1")]
        # The segmenter, the reference, and one job for measuring and scoring each method.
        assert len(with_gpu) == 2 + 3 and set(with_gpu.partition) == {"main"}, native
        # Two splits, the dataset's card, the prior of class means.
        without = native.drop(with_gpu.index)
        assert len(without) == 4 and set(without.partition) == {"high"}, native


def test_jobs_of_the_executor_outlive_the_controller(flow: Flow) -> None:
    manifest = f"{PAIRS}/train/manifest.json"
    head = flow.start(flow.snakemake("tiny", manifest))
    until((flow.folder / "logs/prepare/scenes_tiny.train.log").exists, 90, "the rule runs in its job")
    with flow.cluster.without_controller():
        time.sleep(25)  # long enough for a question about the job's state that nobody answers
        assert head.poll() is None
    assert flow.ended(head, timeout=200) == 0, flow.said(head)
    assert list(flow.asked().state) == ["COMPLETED"]


def test_jobs_are_followed_with_accounting_and_start_with_the_sites_commands(flow: Flow) -> None:
    if not (shutil.which("slurmdbd") and shutil.which("mariadbd")):
        pytest.skip("skipped: no Slurm accounting")
    flow.cluster.start("--accounting")
    try:
        flow.configure(setup=['echo "${SLURM_JOB_ID}" >> setup.txt'])
        head = flow.start(flow.snakemake("tiny", f"{PAIRS}/val/manifest.json"))
        assert flow.ended(head) == 0, flow.said(head)
        job, name = flow.asked().job.item(), flow.asked().name.item()
        # The database remembers other tests' jobs, too, some of them with the same id.
        told = flow.cluster.run("sacct", "-n", "-X", "-P", "--name", name, "-o", "JobIDRaw,State").splitlines()
        assert told == [f"{job}|COMPLETED"]
        assert (flow.folder / "setup.txt").read_text().split() == list(flow.asked().job)
    finally:
        flow.cluster.start()


def model(flow: Flow) -> str:
    """The path of the only model of the tiny experiment."""
    code = "from sis.plan import load_plan; p = load_plan(experiment='tiny'); s = p.spec('scenes_tiny', 'sdm-s1.5')"
    code += "; print(p.model('scenes_tiny', s.model_id))"
    return flow.run(["python", "-c", code]).stdout.split()[-1]


def launched(flow: Flow) -> dict[str, str]:
    """State of every training job, by id."""
    asked = flow.asked()
    ours = asked[asked.name.str.startswith("sis-")]
    return dict(zip(ours.job, ours.state, strict=True))


def test_ctrl_c_ends_the_workflow_and_its_training(training: Flow) -> None:
    target = model(training)
    head = training.start(training.snakemake("tiny", target))
    training.reaches(str(Path(target).parent), 5)
    assert training.kill(head, signal.SIGINT) != 0
    until(lambda: not training.cluster.jobs("pending,running,completing"), 60, "the queue is empty")
    assert set(launched(training).values()) == {"CANCELLED"}, training.said(head)
    assert not (training.folder / target).exists()
    again = training.start(training.snakemake("tiny", target))
    assert training.ended(again) == 0, training.said(again)
    until(lambda: "RUNNING" not in launched(training).values(), 60, "the second job has ended")
    assert sorted(launched(training).values()) == ["CANCELLED", "COMPLETED"]


def test_a_workflow_that_was_killed_goes_on_with_the_same_job(training: Flow) -> None:
    target = model(training)
    folder = str(Path(target).parent)
    head = training.start(training.snakemake("tiny", target))
    training.reaches(folder, 5)
    job = training.job(folder)
    training.kill(head, signal.SIGKILL)
    assert training.cluster.jobs()[job] == "RUNNING"
    training.run([*training.snakemake("tiny", target), "--unlock"])
    again = training.start(training.snakemake("tiny", target))
    assert training.ended(again) == 0, training.said(again)
    until(lambda: launched(training) == {job: "COMPLETED"}, 60, "the only job has ended")
    assert (training.folder / target).is_file()
    training.never_two(folder)


def test_a_closed_terminal_leaves_the_training_alone(training: Flow) -> None:
    target = model(training)
    folder = str(Path(target).parent)
    head = training.start(training.snakemake("tiny", target))
    training.reaches(folder, 5)
    job = training.job(folder)
    training.kill(head, signal.SIGHUP)
    time.sleep(2)
    assert training.cluster.jobs()[job] == "RUNNING", training.said(head)
