# SPDX-License-Identifier: Apache-2.0
"""FID extrapolated to infinitely many images: the line, its value on Gaussians, and its replicates."""

from __future__ import annotations

import numpy as np
import pytest
from feature_rows import card, gaussian, judge, ones, rows

from evaluators.bootstrap import multiplicities
from evaluators.frechet import Moments, Target, distance
from evaluators.metrics import fid_infinity
from evaluators.metrics.fid_infinity import intercept, sizes


def test_the_line_through_points_that_lie_on_one_ends_at_its_intercept() -> None:
    counts = np.array(sizes(1000))
    assert intercept(list(counts)) @ (7 + 300 / counts) == pytest.approx(7)


def test_subsets_are_evenly_spaced_up_to_the_whole_set() -> None:
    assert sizes(50_000)[0] == 5000 and sizes(50_000)[-1] == 50_000
    assert sizes(500)[0] == 250 and sizes(500)[-1] == 500 and len(sizes(500)) == 15
    assert sizes(4) == [2] * 7 + [3] * 7 + [4]


def test_it_comes_nearer_to_infinitely_many_images_than_fid_does() -> None:
    y = gaussian(0, 4000, 16, 1.0)
    truth = distance(Moments(2.0, np.full(16, 0.05), np.diag(1 / np.arange(1, 17))), Moments.of(y))
    plain, infinite = [], []
    for seed in range(1, 13):
        x = gaussian(seed, 300, 16, 1.0, 0.05)
        plain.append(Target.of(y).distance(x) - truth)
        infinite.append(fid_infinity.finish(rows(x), ones(300), judge(y)).value[0] - truth)
    error = np.std(infinite) / np.sqrt(len(infinite))
    assert np.mean(plain) > 0.015
    assert abs(np.mean(infinite)) < 3 * error < np.mean(plain) / 2


def test_its_value_is_repeatable_and_its_replicates_scatter_about_it() -> None:
    x, y = gaussian(20, 200, 6, 1.0, 0.1), gaussian(21, 200, 6)
    value = fid_infinity.finish(rows(x), ones(200), judge(y)).value[0]
    assert value == fid_infinity.finish(rows(x), ones(200), judge(y)).value[0]
    w = multiplicities(0, 200, 200)
    found = fid_infinity.finish(rows(x), w, judge(y)).value
    others = [
        fid_infinity.finish(rows(gaussian(k, 200, 6, 1.0, 0.1)), ones(200), judge(y)).value for k in range(30, 70)
    ]
    assert found.mean() == pytest.approx(value, abs=4 * found.std() / np.sqrt(200))
    assert 0.6 < found.std() / np.std(others) < 1.6


def test_it_says_when_the_line_is_doubtful_or_there_is_none() -> None:
    y = gaussian(22, 30, 8)
    assert fid_infinity.finish(rows(gaussian(23, 12, 8)), ones(12), judge(y)).note.startswith("subsets of 6 for 8 feat")
    assert not fid_infinity.finish(rows(gaussian(23, 20, 8)), ones(20), judge(y)).note
    few = fid_infinity.finish(rows(gaussian(23, 3, 8)), ones(3), judge(y))
    assert np.isnan(few.value[0]) and few.note == "needs 4 images or more"
    assert fid_infinity.name(card()) == "fid-infinity" and fid_infinity.name(card("dinov2")) == "fd-infinity-dinov2"
    assert fid_infinity.settings(card())["points"] == 15
