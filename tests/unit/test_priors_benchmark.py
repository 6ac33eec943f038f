# SPDX-License-Identifier: Apache-2.0
"""The benchmark of prior statistics runs at a tiny size and compares with the released way."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import sis  # noqa: F401 - makes torchvision importable, which diffusers wants

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "priors.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_priors", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_priors_runs_and_both_ways_agree(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(["--images", "3", "--size", "64", "--classes", "12"])
    shown = capsys.readouterr().out
    for line in ("add", "state", "merge", "priors", "released way", "ours", "ratio"):
        assert re.search(rf"^{line} +[\d.]+ ", shown, re.MULTILINE), shown
    ratio = re.search(r"ratio +([\d.]+) x .* differ by ([\d.e+-]+)$", shown, re.MULTILINE)
    assert ratio is not None and float(ratio[1]) > 1 and float(ratio[2]) <= 1e-6


def test_the_benchmark_notices_other_tokens(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class First(benchmark.TokenPicker):
        """Takes every class' first token."""

        def pick(self, labels: np.ndarray) -> np.ndarray:
            chosen = np.zeros(labels.size, bool)
            chosen[np.unique(labels, return_index=True)[1]] = True
            return chosen.reshape(labels.shape)

    right = benchmark.Ours.__init__

    def other(self: object, net: object, picker: object, state: object) -> None:
        right(self, net, First(None), state)

    monkeypatch.setattr(benchmark.Ours, "__init__", other)
    with pytest.raises(AssertionError, match="categorical means differ"):
        benchmark.main(["--images", "2", "--size", "64", "--classes", "12"])
