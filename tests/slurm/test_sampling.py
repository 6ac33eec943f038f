# SPDX-License-Identifier: Apache-2.0
"""Arrays of shards that are interrupted in every way end with the pixels of a sampling that was left in peace."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from cluster_control import until
from launching import Bench

from sis.data.image_set import pixel_hashes

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def ready(bench: Bench, peace: Bench) -> Bench:
    """A bench with the model trained already; a shard has four batches of four images."""
    shutil.copytree(peace.folder / "model", bench.folder / "model", ignore=shutil.ignore_patterns("work"))
    return bench


def same(bench: Bench, peace: Bench) -> bool:
    return pixel_hashes(bench.folder / "images") == pixel_hashes(peace.folder / "images")


def batches(bench: Bench) -> dict[Path, int]:
    """The finished batches that wait for their shard."""
    found = (bench.folder / "images/work").glob("shard-*/batch-*.parquet")
    return {path: path.stat().st_mtime_ns for path in found}


def test_one_signalled_shard_goes_on_where_it_was(ready: Bench, peace: Bench) -> None:
    head = ready.start(ready.sampling("images", "model"))
    ready.reaches("images", 4, index=1)
    job = ready.job("images")
    ready.cluster.run("scancel", "--signal=USR2", f"{job}_1")
    until(lambda: ready.cluster.jobs()[f"{job}_1"] == "PENDING", 60, "the shard is queued again")
    kept = {path: at for path, at in batches(ready).items() if path.parent.name == "shard-0001"}
    assert kept
    until(lambda: ready.cluster.jobs()[f"{job}_0"] != "RUNNING", 120, "another shard ends")
    assert {path: at for path, at in batches(ready).items() if path in kept} == kept
    ready.cluster.hurry(f"{job}_1")
    assert ready.ended(head) == 0, ready.said(head)
    assert same(ready, peace)
    first = [event["event"] for event in ready.events("images") if event["index"] == 1]
    others = [event["event"] for event in ready.events("images") if event["index"] != 1]
    assert first == ["start", "requeue", "start", "end"] and sorted(others) == ["end"] * 3 + ["start"] * 3


def test_after_a_cancelled_shard_only_missing_ones_are_submitted(ready: Bench, peace: Bench) -> None:
    head = ready.start(ready.sampling("images", "model"))
    ready.reaches("images", 4, index=2)
    job = ready.job("images")
    ready.cluster.run("scancel", f"{job}_2")
    assert ready.ended(head) == 2
    last = ready.said(head).strip().splitlines()[-1]
    assert last.startswith(f"error: job {job}_2") and "was cancelled" in last
    shards = {path: path.stat().st_mtime_ns for path in (ready.folder / "images").glob("shard-*.parquet")}
    assert len(shards) == 3 and not (ready.folder / "images/manifest.json").exists()
    again = ready.run(ready.sampling("images", "model"))
    assert "jobs)" not in again.stdout, "one job for the one shard"
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert same(ready, peace)


def test_a_shard_that_is_cancelled_while_it_waits(ready: Bench, peace: Bench) -> None:
    ready.configure(array_jobs=2)
    head = ready.start(ready.sampling("images", "model"))
    ready.reaches("images", 4, index=0)
    ready.cluster.run("scancel", f"{ready.job('images')}_3")
    assert ready.ended(head) == 2
    assert "_3 was cancelled" in ready.said(head)
    # At once, while the last jobs may still be leaving.
    again = ready.run(ready.sampling("images", "model"))
    assert "submitted" in again.stdout and "jobs)" not in again.stdout, "one job for the one shard"
    assert same(ready, peace)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT], ids=["kill", "hup", "int"])
def test_a_head_that_ends_during_sampling(ready: Bench, peace: Bench, number: signal.Signals) -> None:
    head = ready.start(ready.sampling("images", "model"))
    ready.reaches("images", 4, index=3)
    job = ready.job("images")
    ready.kill(head, number)
    living = [s for i, s in ready.cluster.jobs().items() if i.startswith(f"{job}_") and s in ("RUNNING", "PENDING")]
    assert bool(living) == (number != signal.SIGINT)
    again = ready.run(ready.sampling("images", "model"))
    assert ("submitted" in again.stdout) == (number == signal.SIGINT)
    assert same(ready, peace)
    ready.never_two("images")


def test_more_shards_than_the_array_may_have_share_jobs(ready: Bench, peace: Bench) -> None:
    ready.configure(array_size=2)
    done = ready.run(ready.sampling("images", "model", shards=4))
    assert "(2 jobs)" in done.stdout
    assert same(ready, peace)


def test_a_deleted_manifest_comes_back_without_a_job(ready: Bench, peace: Bench) -> None:
    ready.run(ready.sampling("images", "model"))
    until(lambda: "RUNNING" not in ready.cluster.jobs().values(), 60, "the jobs have left")
    until(lambda: "COMPLETING" not in ready.cluster.jobs().values(), 60, "the jobs have left")
    (ready.folder / "images/manifest.json").unlink()
    again = ready.run(ready.sampling("images", "model"))
    assert "has finished it" in again.stdout and "submitted" not in again.stdout
    assert same(ready, peace)
