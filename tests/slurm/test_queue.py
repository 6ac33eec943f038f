# SPDX-License-Identifier: Apache-2.0
"""A real Slurm without accounting: states of jobs, their ends in one line, outages that lose nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_control import Cluster, until

from sis.config.cluster import Needs, SlurmSite
from sis.launch.diagnosis import diagnose, refused, stuck, transient
from sis.launch.queue import ENDED, JobState, Unreachable
from sis.launch.slurm_queue import SlurmQueue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NEEDS = Needs(memory_gb=0.25, hours=1)
#: Takes 400 MB of a job that has 100.
GREEDY = f"{sys.executable} -c 'import time; x = bytearray(400 << 20); time.sleep(60)'"


@pytest.fixture
def queue(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> SlurmQueue:
    """The queue of the test's cluster."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    return SlurmQueue()


def state(queue: SlurmQueue, job: str, index: int = 0) -> JobState:
    """State of a job that is known."""
    found = queue.states(job)
    assert found is not None and index in found, found
    return found[index]


def ended(queue: SlurmQueue, job: str, seconds: float = 60, index: int = 0) -> JobState:
    """Wait for the end of a job."""
    until(lambda: state(queue, job, index).state in ENDED, seconds, f"job {job} has ended")
    return state(queue, job, index)


def runs(queue: SlurmQueue, job: str) -> None:
    """Wait until a job runs."""
    until(lambda: state(queue, job).state == "RUNNING", 60, f"job {job} runs")


def test_members_of_an_array_have_states_of_their_own(cluster: Cluster, queue: SlurmQueue) -> None:
    job = cluster.submit("[ $SLURM_ARRAY_TASK_ID = 0 ] && exit 3; sleep 60", "--array=0-3%2", "-J", "sis-array")
    until(lambda: [s.state for _, s in sorted((queue.states(job) or {}).items())][:3] == ["FAILED"] + ["RUNNING"] * 2,
          50, "the first has failed, two run")  # fmt: skip
    found = queue.states(job) or {}
    assert found[0] == JobState("FAILED", "NonZeroExitCode", found[0].nodes, "3:0") and found[0].nodes
    assert found[3] == JobState("PENDING", "JobArrayTaskLimit") and stuck(found[3]) == ""
    assert queue.find("sis-array") == [job] and queue.find("sis-arra") == []
    queue.cancel(job)
    until(lambda: queue.find("sis-array") == [], 60, "all members are gone")
    assert ended(queue, job, index=2).state == "CANCELLED"
    queue.cancel(job)  # once more does no harm


def test_a_held_job_waits_to_be_released(cluster: Cluster, queue: SlurmQueue) -> None:
    job = cluster.submit("true", "--hold", "-J", "sis-held")
    until(lambda: state(queue, job).reason == "JobHeldUser", 60, "it is held")
    assert "held by its user" in stuck(state(queue, job)) and queue.find("sis-held") == [job]
    queue.release(job)
    assert ended(queue, job) == JobState("COMPLETED", nodes=state(queue, job).nodes, exit_code="0:0")
    assert queue.find("sis-held") == []


def test_members_that_never_began_are_cancelled_one_by_one(cluster: Cluster, queue: SlurmQueue) -> None:
    job = cluster.submit("true", "--hold", "--array=0-3")
    assert set(queue.states(job) or {}) == {0, 1, 2, 3}
    queue.cancel(job)
    assert queue.states(job) == dict.fromkeys(range(4), JobState("CANCELLED", "JobHeldUser", exit_code="0:0"))


def test_a_job_that_nobody_knows_is_forgotten(queue: SlurmQueue) -> None:
    assert queue.states("999999") == {}
    queue.cancel("999999")


def test_a_job_cancelled_by_hand_says_so(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = cluster.submit("srun sleep 60", log=log)
    runs(queue, job)
    cluster.run("scancel", job)
    end = ended(queue, job)
    message = str(diagnose(job, end, log, NEEDS))
    assert f"job {job} ({end.nodes}) was cancelled [{log}]" in message and not transient(end)


def test_a_time_limit_says_so(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = cluster.submit("srun bash -c 'echo began; exec sleep 100'", log=log)
    until(lambda: log.exists() and "began" in log.read_text(), 60, "its step has begun")
    cluster.time_out(job)
    end = ended(queue, job, 90)
    assert "reached its time limit of 1 h" in str(diagnose(job, end, log, NEEDS)) and transient(end)
    # Its log alone would tell as much, once Slurm has forgotten the job.
    assert "reached its time limit" in str(diagnose(job, None, log, NEEDS))


@pytest.mark.parametrize("way", ["", "srun "])
def test_a_job_over_its_memory_is_killed_and_says_so(
    cluster: Cluster, queue: SlurmQueue, tmp_path: Path, way: str
) -> None:
    log = tmp_path / "log"
    job = cluster.submit(f"echo began; {way}{GREEDY}", "--mem=100", log=log)
    end = ended(queue, job)
    assert f"job {job} ({end.nodes}) ran out of memory: asked for 0.25 GiB [{log}]" in str(
        diagnose(job, end, log, NEEDS)
    )
    assert not transient(end)


def test_a_failure_is_told_by_its_last_words(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    log = tmp_path / "log"
    python = f"{sys.executable} -c 'print(1 / 0)'"
    job = cluster.submit(f"srun {python}", log=log)
    assert "failed (exit code 1): ZeroDivisionError" in str(diagnose(job, ended(queue, job), log, NEEDS))


def test_a_folder_that_a_node_does_not_see_is_named(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    with cluster.blind("n2", tmp_path):
        job = cluster.submit("true", "-w", "n2", log=tmp_path / "n2.log")
        seeing = cluster.submit("true", "-w", "n1", log=tmp_path / "n1.log")
        message = str(diagnose(job, ended(queue, job), tmp_path / "n2.log", NEEDS))
        assert ended(queue, seeing).state == "COMPLETED"
    assert f"job {job} (n2) could not open its log: is the folder visible on node n2?" in message
    again = cluster.submit("true", "-w", "n2", log=tmp_path / "n2.log")
    assert ended(queue, again).state == "COMPLETED"


def test_a_dead_node_ends_or_requeues_its_jobs(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    log, done = tmp_path / "log", tmp_path / "done"
    once = cluster.submit("srun sleep 200", "-w", "n1", "--no-requeue", log=log)
    kept = cluster.submit(
        f"[ -e {done}.1 ] && touch {done}; touch {done}.1; [ -e {done} ] || srun sleep 200", "-w", "n1"
    )
    other = cluster.submit("sleep 200", "-w", "n2")
    for job in (once, kept, other):
        runs(queue, job)
    until(Path(f"{done}.1").exists, 60, "it has begun")
    cluster.kill_node("n1")
    end = ended(queue, once, 90)
    assert "ended because its node failed" in str(diagnose(once, end, log, NEEDS)) and transient(end)
    until(lambda: state(queue, kept).state == "PENDING", 60, "the other is queued again")
    assert state(queue, other).state == "RUNNING"
    cluster.start()
    cluster.hurry(kept)
    assert ended(queue, kept).state == "COMPLETED" and done.exists()


def test_an_absent_controller_is_no_lost_job(cluster: Cluster, queue: SlurmQueue, tmp_path: Path) -> None:
    job = cluster.submit(f"sleep 5; touch {tmp_path}/done", "-J", "sis-outage")
    runs(queue, job)
    with cluster.without_controller():
        assert SlurmQueue(timeout=2).states(job) is None  # cut off
        assert queue.states(job) is None  # answered by squeue itself
        with pytest.raises(Unreachable, match="controller does not answer"):
            queue.find("sis-outage")
        with pytest.raises(Unreachable, match=f"scancel {job}"):
            queue.cancel(job)
        assert (tmp_path / "done").exists()
    assert ended(queue, job, 90).state == "COMPLETED"


def test_daemons_killed_at_once_start_again_with_their_jobs(cluster: Cluster, queue: SlurmQueue) -> None:
    waiting = cluster.submit("true", "--hold", "-J", "sis-saved")
    # The controller writes what it knows every few seconds; a crash before that loses the job.
    saved = cluster.root / "lib" / "slurmctld" / "job_state"
    until(lambda: saved.exists() and b"sis-saved" in saved.read_bytes(), 60, "the controller has saved its state")
    for daemon in ("slurmctld", "slurmd.n1", "slurmd.n2"):
        os.kill(cluster.pid(daemon), signal.SIGKILL)
    cluster.start()
    queue.release(waiting)
    assert ended(queue, waiting, 60).state == "COMPLETED"


@pytest.mark.parametrize(
    ("site", "options", "words"),
    [
        (SlurmSite(partition="nowhere"), ["-p", "nowhere"], "there is no partition 'nowhere'"),
        (SlurmSite(gpu_type="a100"), ["--gres=gpu:a100:1"], "no node can give what was asked for (gpu_type: a100)"),
        (SlurmSite(), ["--gres=tpu:1"], "the cluster has no such GPUs"),
        (SlurmSite(), ["--mem=99999999"], "no node has as much memory"),
        (SlurmSite(), ["--array=0-5000"], "the array is larger than the site allows"),
        (SlurmSite(constraint="ib"), ["-C", "ib"], "no node has feature 'ib'"),
        (SlurmSite(), ["--bogus"], "sbatch does not understand an option"),
    ],
)
def test_a_refusal_is_told_in_words_of_the_site(
    cluster: Cluster, site: SlurmSite, options: list[str], words: str
) -> None:
    assert words in str(refused(_refusal(cluster.submit, *options), site))


@pytest.mark.parametrize(("option", "words"), [("--time=99", "lower hours"), ("--nodes=9", "lower nodes")])
def test_a_job_that_can_never_start_says_why(cluster: Cluster, queue: SlurmQueue, option: str, words: str) -> None:
    cluster.run("scontrol", "update", "partitionname=low", "maxtime=5")
    try:
        job = cluster.submit("true", "-p", "low", option)
        until(lambda: words in stuck(state(queue, job)), 60, f"it should {words}")
    finally:
        cluster.run("scontrol", "update", "partitionname=low", "maxtime=infinite")


def _refusal(submit: Callable[..., str], *options: str) -> str:
    """What sbatch says to these options."""
    with pytest.raises(AssertionError) as caught:
        submit("true", *options)
    return str(caught.value)
