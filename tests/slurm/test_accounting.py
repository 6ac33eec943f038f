# SPDX-License-Identifier: Apache-2.0
"""The same with accounting: ends that the controller has forgotten, accounts and limits that refuse."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_control import Cluster, until

from sis.config.cluster import Needs, SlurmSite
from sis.launch.diagnosis import diagnose, refused, stuck
from sis.launch.queue import ENDED, JobState
from sis.launch.slurm_queue import SlurmQueue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NEEDS = Needs(memory_gb=0.25, hours=1)


@pytest.fixture(scope="module")
def accounting(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, started again with slurmdbd and a database, and without them afterwards."""
    if not (shutil.which("slurmdbd") and shutil.which("mariadbd")):
        pytest.skip("skipped: no Slurm accounting")
    running_cluster.start("--accounting")
    yield running_cluster
    running_cluster.run("scancel", "--user=root", check=False)
    running_cluster.start()


@pytest.fixture
def queue(accounting: Cluster, monkeypatch: pytest.MonkeyPatch) -> SlurmQueue:
    """The queue of the test's cluster."""
    monkeypatch.setenv("SLURM_CONF", accounting.environment["SLURM_CONF"])
    return SlurmQueue()


def ended(queue: SlurmQueue, job: str) -> dict[int, JobState]:
    """Wait until all members that are known have ended."""
    until(lambda: all(s.state in ENDED for s in (queue.states(job) or {0: JobState("RUNNING")}).values()), 60,
          f"job {job} has ended")  # fmt: skip
    return queue.states(job) or {}


def accounted(cluster: Cluster, job: str) -> list[str]:
    """States of a job in the database, whose entries come some seconds later."""
    return cluster.run("sacct", "-n", "-X", "-P", "-o", "State", "-j", job).splitlines()


def _settled(states: list[str]) -> bool:
    return bool(states) and all(state.split()[0] in ENDED for state in states)


def test_a_job_that_the_controller_has_forgotten_is_known_by_accounting(
    accounting: Cluster, queue: SlurmQueue, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    greedy = f"{sys.executable} -c 'import time; x = bytearray(400 << 20); time.sleep(60)'"
    failing = accounting.submit("exit 3")
    killed = accounting.submit(f"srun {greedy}", "--mem=100", log=log)
    array = accounting.submit("[ $SLURM_ARRAY_TASK_ID = 0 ] || sleep 60", "--array=0-4%2")
    held = accounting.submit("true", "--hold")
    where = ended(queue, failing)[0].nodes
    ended(queue, killed)
    until(lambda: (queue.states(array) or {})[0].state == "COMPLETED", 60, "the first member has ended")
    queue.cancel(array)
    queue.cancel(held)
    ended(queue, array)
    for job in (failing, killed, array, held):
        until(lambda job=job: _settled(accounted(accounting, job)), 60, "accounting has it")
    accounting.stop()
    shutil.rmtree(accounting.root / "lib" / "slurmctld")
    accounting.start("--accounting")
    assert accounting.jobs() == {}

    assert queue.states(failing) == {0: JobState("FAILED", "", where, "3:0")}
    end = (queue.states(killed) or {})[0]
    assert f"job {killed} ({end.nodes}) ran out of memory" in str(diagnose(killed, end, log, NEEDS))
    members = queue.states(array) or {}
    assert [members[i].state for i in range(5)] == ["COMPLETED"] + ["CANCELLED"] * 4
    assert "was cancelled by root" in str(diagnose(held, (queue.states(held) or {})[0], None, NEEDS))
    assert queue.states("999999") == {}


def test_a_database_out_of_order_leaves_the_queue_usable(accounting: Cluster, queue: SlurmQueue) -> None:
    os.kill(accounting.pid("slurmdbd"), signal.SIGKILL)
    try:
        job = accounting.submit("exit 4")
        assert ended(queue, job)[0].exit_code == "4:0"
        assert SlurmQueue(timeout=5).states("999999") == {}
    finally:
        accounting.start("--accounting")


@pytest.mark.parametrize(
    ("site", "option", "words"),
    [
        (SlurmSite(account="nobody"), "--account=nobody", "account 'nobody' does not exist or may not use"),
        (SlurmSite(qos="fast"), "--qos=fast", "there is no quality of service 'fast'"),
    ],
)
def test_a_refusal_names_the_account_or_quality(accounting: Cluster, site: SlurmSite, option: str, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        accounting.submit("true", option)
    assert words in str(refused(str(caught.value), site))


def test_limits_of_an_account_refuse_or_hold_a_job(accounting: Cluster, queue: SlurmQueue) -> None:
    def limit(*values: str) -> None:
        accounting.run("sacctmgr", "-i", "modify", "account", "test", "set", *values)

    limit("MaxSubmitJobs=1", "MaxWall=5")
    try:
        with pytest.raises(AssertionError) as caught:
            accounting.submit("true", "--account=test", "--array=0-3")
        assert "the account's limits do not allow this job now" in str(refused(str(caught.value), SlurmSite()))
        job = accounting.submit("true", "--account=test", "--time=9")
        until(lambda: stuck((queue.states(job) or {})[0]), 60, "it is stuck")
        assert "may not ask for so much time" in stuck((queue.states(job) or {})[0])
    finally:
        limit("MaxSubmitJobs=-1", "MaxWall=-1")
