# SPDX-License-Identifier: Apache-2.0
"""The benchmark of preparation and loading runs, compares pixels, and its memory bound holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sis.data.images import encode_png

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_prepare", ROOT / "benchmarks" / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_prepare_and_loader_runs_at_a_tiny_size(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(["--photographs", "6", "--pairs", "70", "--size", "32", "--rounds", "1"])
    shown = capsys.readouterr().out
    for line in ("plain loop, no checks", "sis prepare --workers 1", "sis prepare --workers 2"):
        assert re.search(rf"^{line} +[\d.]+ +[\d.]+ +[\d.]+ +[1-9]\d* +\d+$", shown, re.MULTILINE), shown
    assert len(re.findall(r"read ahead, \d+ threads +[\d.]+ images/s +[\d.]+ x plain", shown)) == 2
    assert re.findall(r"while ([\d,]+) images were read", shown) == ["70", "70"]


def test_the_benchmark_notices_a_pixel_that_differs(benchmark: ModuleType, tmp_path: Path) -> None:
    made = benchmark.card(32, 3, "sdm")
    benchmark.write_photographs(tmp_path / "raw", 3, 32)
    benchmark.plain_prepare(made, tmp_path / "raw", tmp_path / "plain")
    benchmark.prepare(made, "val", tmp_path / "raw", tmp_path / "ours")
    benchmark.assert_equal_pairs(tmp_path / "plain", tmp_path / "ours")
    (tmp_path / "raw/val/images/000001.jpg").unlink()
    other = encode_png(np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "raw/val/images/000001.png").write_bytes(other)
    benchmark.prepare(made, "val", tmp_path / "raw", tmp_path / "other")
    with pytest.raises(AssertionError, match="image 000001 differs"):
        benchmark.assert_equal_pairs(tmp_path / "plain", tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("augmented", [False, True])
def test_the_training_loader_needs_little_memory(benchmark: ModuleType, tmp_path: Path, augmented: bool) -> None:
    """3,000 pairs of 256x256 are 750 MiB of pixels; making the cache and reading an epoch must not hold them."""
    found = benchmark.measure_loader(tmp_path, 3000, 256, 1, augmented)
    assert found["read"] >= 2000
    assert 0 < found["made_growth"] < 200e6 and 0 < found["read_growth"] < 200e6
