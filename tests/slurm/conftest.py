# SPDX-License-Identifier: Apache-2.0
"""One Slurm for all tests of this folder, started once, and a project that is launched on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_control import SKIPPED, Cluster, usable
from launching import Bench, make_bench


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """The cluster of this test run: two nodes of eight CPUs, 16 GB and four fake GPUs, no accounting."""
    if not usable():
        pytest.skip(SKIPPED)
    root = Path(os.environ.get("SLURM_TEST_ROOT", "/run/sis-slurm"))
    cluster = Cluster(root, int(os.environ.get("SLURM_TEST_NUMBER", "0")))
    cluster.start()
    yield cluster
    cluster.stop(purge=True)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whole and idle again after the test."""
    running_cluster.start()
    yield running_cluster
    running_cluster.run("scancel", "--user=root", check=False)


@pytest.fixture
def bench(cluster: Cluster, peace: Bench, tmp_path: Path) -> Iterator[Bench]:
    """A project with prepared pairs; its heads do not outlive the test."""
    bench = make_bench(tmp_path / "project", cluster, peace)
    yield bench
    for head in bench.heads:
        if head.poll() is None:
            head.kill()
            head.wait()


@pytest.fixture(scope="session")
def peace(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The same project, trained and sampled once without a cluster and without interruption."""
    bench = make_bench(tmp_path_factory.mktemp("peace") / "project", running_cluster)
    bench.run(bench.training("model", "inline"))
    bench.run(bench.sampling("images", "model", launcher="inline"))
    return bench
