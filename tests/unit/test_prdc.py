# SPDX-License-Identifier: Apache-2.0
"""Precision, recall, density and coverage against their definitions written out in loops."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from feature_rows import card, gaussian, judge, ones, rows
from numpy.typing import NDArray

from evaluators import neighbours
from evaluators.bootstrap import multiplicities
from evaluators.metrics import coverage, density, precision, recall
from sis.errors import SisError


def radius(rows: NDArray, i: int, k: int) -> float:
    """Distance from row i to its k-th nearest other row."""
    return sorted(float(np.linalg.norm(rows[i] - rows[j])) for j in range(len(rows)) if j != i)[k - 1]


def precise(x: NDArray, y: NDArray, w: NDArray) -> float:
    inside = [any(np.linalg.norm(a - y[i]) <= radius(y, i, 3) for i in range(len(y))) for a in x]
    return float(np.average(inside, weights=w))


def recalled(x: NDArray, y: NDArray, w: NDArray) -> float:
    return float(
        np.mean([any(w[j] > 0 and np.linalg.norm(a - x[j]) <= radius(x, j, 3) for j in range(len(x))) for a in y])
    )


def dense(x: NDArray, y: NDArray, w: NDArray) -> float:
    inside = [sum(np.linalg.norm(a - y[i]) < radius(y, i, 5) for i in range(len(y))) / 5 for a in x]
    return float(np.average(inside, weights=w))


def covered(x: NDArray, y: NDArray, w: NDArray) -> float:
    return float(
        np.mean(
            [
                any(w[j] > 0 and np.linalg.norm(x[j] - y[i]) < radius(y, i, 5) for j in range(len(x)))
                for i in range(len(y))
            ]
        )
    )


ORACLES = [(precision, precise), (recall, recalled), (density, dense), (coverage, covered)]


@pytest.mark.parametrize(("metric", "oracle"), ORACLES)
@pytest.mark.parametrize("at_once", [1, 30, 2**23])
def test_each_is_its_definition_for_every_resample_and_strip(
    metric: ModuleType, oracle: Callable, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = gaussian(0, 14, 3, 1.0, 0.6), gaussian(1, 11, 3, 0.5) * 0.8
    w = np.concatenate([ones(14), multiplicities(0, 4, 14)])
    monkeypatch.setattr(neighbours, "_AT_ONCE", at_once)
    found = metric.finish(rows(x), w, judge(y)).value
    expected = [oracle(x.astype(float), y.astype(float), row) for row in w]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[0] > 0 and len(set(expected)) > 1  # the case decides something


def test_far_away_copies_of_one_image_are_neither_precise_nor_cover_anything() -> None:
    real = gaussian(2, 20, 2)
    collapsed = np.full((10, 2), 50, np.float32)
    for metric in (precision, recall, density, coverage):
        assert metric.finish(rows(collapsed), ones(10), judge(real)).value[0] == 0


def test_the_real_images_themselves_are_precise_recalled_and_cover() -> None:
    real = gaussian(3, 30, 4)
    for metric in (precision, recall, coverage):
        assert metric.finish(rows(real), ones(30), judge(real)).value[0] == 1
    # each lies inside its own ball, and in four others' on average: the balls' edges are outside
    assert density.finish(rows(real), ones(30), judge(real)).value[0] == pytest.approx(1)


def test_features_far_from_zero_keep_their_neighbours() -> None:
    x, y = gaussian(4, 20, 3), gaussian(5, 20, 3)
    for metric in (precision, recall, density, coverage):
        near, far = (metric.finish(rows(x + s), ones(20), judge(y + s)).value for s in (0, 64))
        assert near == pytest.approx(far, abs=0.06)  # rounding of the shifted float32 features may move one of them


def test_too_few_images_are_undefined_and_too_few_real_ones_refused() -> None:
    real = gaussian(6, 10, 3)
    found = recall.finish(rows(real[:3]), ones(3), judge(real))
    assert np.isnan(found.value[0]) and found.note == "needs 4 images or more"
    for metric, least in ((precision, 4), (density, 6), (coverage, 6)):
        with pytest.raises(SisError, match=f"features of {least} real images or more, found 3"):
            metric.finish(rows(real), ones(10), judge(real[:3]))


def test_they_use_fids_rows_and_name_their_neighbours() -> None:
    for metric, k in ((precision, 3), (recall, 3), (density, 5), (coverage, 5)):
        assert metric.SOURCE == "fid" and metric.settings(card())["neighbours"] == k
    assert precision.name(card("dinov2")) == "precision-dinov2"
    assert getattr(recall, "RECENTRE", False) and getattr(coverage, "RECENTRE", False)
