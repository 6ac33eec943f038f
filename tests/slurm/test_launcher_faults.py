# SPDX-License-Identifier: Apache-2.0
"""What breaks around a training: each time one line that names the job and its log, nothing lost, nothing hanging."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_control import until
from launching import Bench

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def refused(bench: Bench, *words: str) -> str:
    """The line with which a launch ends that cannot succeed."""
    done = bench.run(bench.training(), check=False, timeout=300)
    assert done.returncode == 2, done.stdout
    line = last_line(done.stdout)
    assert line.startswith("error: ") and "Traceback" not in done.stdout
    assert all(word in line for word in words), line
    # A job that ended by its own word may take a moment to leave.
    living = ("PENDING", "RUNNING", "COMPLETING")
    until(lambda: not any(s in living for s in bench.cluster.jobs().values()), 60, "no job is left")
    return line


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, `size` large, at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_partition_that_does_not_exist(bench: Bench) -> None:
    bench.configure(partition="nowhere")
    refused(bench, "no partition 'nowhere", "config/config.yaml", "sinfo")
    assert not (bench.launch("model") / "job.json").exists()
    bench.configure(partition="low")
    assert bench.run(bench.training()).returncode == 0


def test_gpus_that_do_not_exist(bench: Bench) -> None:
    bench.configure(gpu_type="a100")
    refused(bench, "no node can give what was asked for", "gpu_type: a100")


def test_more_gpus_than_a_node_has(bench: Bench) -> None:
    bench.experiment(cluster={"train": {"gpus": 99, "memory_gb": 2.0}})
    refused(bench, "no node can give what was asked for")


def test_a_job_out_of_memory(bench: Bench) -> None:
    bench.experiment(cluster={"train": {"gpus": 1, "memory_gb": 0.1, "hours": 2.0}})
    line = refused(bench, "job ", "memory", "0.1 GiB", "memory_gb", "_0_log.err")
    assert bench.job("model") in line


def test_a_folder_that_the_node_does_not_see(bench: Bench) -> None:
    bench.configure(exclude="n2")
    with bench.cluster.blind("n1", bench.folder):
        line = refused(bench, "job ", "n1")
    assert "visible" in line or "No such file" in line or "cannot" in line, line
    assert bench.run(bench.training()).returncode == 0


def test_a_full_disk(bench: Bench, peace: Bench) -> None:
    with small_disk(bench.folder / "model", "900k") as disk:
        line = refused(bench, "job ", "space")
        assert bench.job("model") in line
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        bench.run(bench.training())
        assert bench.weights("model") == peace.weights("model")


def test_a_node_that_dies(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 10)
    job = bench.job("model")
    bench.cluster.kill_node(bench.cluster.run("squeue", "-h", "-j", job, "-o", "%N"))
    until(lambda: bench.cluster.jobs().get(job) != "RUNNING" or bench.job("model") != job, 120, "the failure is seen")
    if bench.cluster.jobs().get(job) == "PENDING":
        bench.cluster.hurry(job)
    assert bench.ended(head) == 0, bench.said(head)
    assert bench.weights("model") == peace.weights("model")
    bench.never_two("model")


def test_a_controller_that_restarts(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 10)
    with bench.cluster.without_controller():
        until(lambda: "does not answer" in bench.said(head), 90, "the head notices")
        assert head.poll() is None
    assert bench.ended(head) == 0, bench.said(head)
    assert bench.weights("model") == peace.weights("model")
    assert [event["event"] for event in bench.events("model")] == ["start", "end"]


def test_a_launch_while_the_controller_is_away_waits_for_it(bench: Bench) -> None:
    with bench.cluster.without_controller():
        head = bench.start(bench.training())
        until(lambda: "does not answer" in bench.said(head), 90, "the head waits")
        assert head.poll() is None
    bench.reaches("model", 5)
    assert bench.kill(head, signal.SIGINT) == 130


def test_a_launch_before_the_controller_has_heard_of_its_nodes_waits_for_them(bench: Bench) -> None:
    with bench.cluster.unheard_nodes("n1", "n2"):
        head = bench.start(bench.training())
        until(lambda: "has not heard of all its nodes" in bench.said(head), 60, "the head waits")
        assert head.poll() is None
    bench.reaches("model", 5)
    assert bench.kill(head, signal.SIGINT) == 130


def test_a_job_that_can_never_start_is_not_waited_for(bench: Bench) -> None:
    bench.cluster.run("scontrol", "update", "partitionname=low", "MaxTime=60")
    try:
        refused(bench, "would never start", "lower hours")
    finally:
        bench.cluster.run("scontrol", "update", "partitionname=low", "MaxTime=UNLIMITED")
