# SPDX-License-Identifier: Apache-2.0
"""Training by several processes under Slurm: on one node, on two, and preempted."""

from __future__ import annotations

import pandas as pd
import pytest
from launching import STEPS, Bench

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def losses(bench: Bench, out: str = "model") -> pd.Series:
    return pd.read_parquet(bench.folder / out / "training.parquet").set_index("step").loss


def asked(bench: Bench, **needs: float) -> None:
    bench.experiment(cluster={"train": {"memory_gb": 2.0, "hours": 2.0, **needs}})


def test_two_tasks_learn_what_one_process_does_and_survive_preemption(bench: Bench, peace: Bench) -> None:
    asked(bench, gpus=2)
    bench.run(bench.training("peaceful"))
    # The batch is the same; only the order of the additions differs.
    pd.testing.assert_series_equal(losses(bench, "peaceful"), losses(peace), rtol=1e-3)
    assert len(losses(peace)) >= STEPS // 10
    assert bench.weights("peaceful") != peace.weights("model")
    head = bench.start(bench.training("model"))
    bench.reaches("model", 15)
    job = bench.job("model")
    bench.cluster.preempt(job)
    bench.cluster.hurry(job)
    assert bench.ended(head) == 0, bench.said(head)
    assert bench.weights("model") == bench.weights("peaceful")
    assert [event["event"] for event in bench.events("model")] == ["start", "requeue", "start", "end"]


def test_two_nodes_train_together(bench: Bench, peace: Bench) -> None:
    asked(bench, gpus=1, nodes=2)
    done = bench.run(bench.training())
    assert "n[1-2]" in done.stdout or "n1,n2" in done.stdout
    pd.testing.assert_series_equal(losses(bench), losses(peace), rtol=1e-3)


def test_a_process_that_fails_takes_the_others_with_it(bench: Bench) -> None:
    # Three processes cannot share a batch of four.
    asked(bench, gpus=3)
    done = bench.run(bench.training(), check=False, timeout=300)
    assert done.returncode == 2
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: job ") and "3" in last and "_0_log.err" in last
