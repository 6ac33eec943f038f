# SPDX-License-Identifier: Apache-2.0
"""The full benchmark stays a small DAG: shards live inside arrays, so that images cost no jobs of Snakemake."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from project_copy import ROOT

from sis.plan import load_plan


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_dag_size", ROOT / "benchmarks" / "dag_size.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_five_datasets_and_25_methods_are_few_jobs(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.project(tmp_path)
    plan = load_plan(experiment=str(tmp_path / "config/experiments/full_benchmark.yaml"))
    assert len(plan.experiment.datasets) == 5 and len(plan.runs) == 125
    assert len({s.model_id for s in plan.runs}) == 125, "every method has a training of its own"
    for spec in plan.runs:
        assert spec.samples_per_map * spec.dataset.splits[spec.protocol.split].count >= 50_000
    jobs, _ = benchmark.dry_run(tmp_path)
    assert 4 * 125 < jobs < 2000


@pytest.mark.slow
def test_more_images_are_no_more_jobs(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.project(tmp_path)
    path = tmp_path / "config/experiments/full_benchmark.yaml"
    first, _ = benchmark.dry_run(tmp_path)
    changed, count = re.subn(r"samples_per_map: \d+", "samples_per_map: 1000", path.read_text())
    assert count == 5
    path.write_text(changed)
    assert benchmark.dry_run(tmp_path)[0] == first
