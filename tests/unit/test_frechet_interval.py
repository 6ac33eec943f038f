# SPDX-License-Identifier: Apache-2.0
"""Replicates of a Fréchet distance: derivatives against differences, and their spread against that of new samples."""

from __future__ import annotations

import numpy as np
import pytest
from feature_rows import gaussian

from evaluators.bootstrap import multiplicities
from evaluators.frechet import Moments, Target, distances
from evaluators.frechet_interval import derivatives, is_exact, replicates


@pytest.mark.parametrize(("n", "m", "d"), [(30, 50, 8), (12, 50, 20), (12, 9, 20), (40, 6, 10)])
def test_derivatives_are_the_slopes_of_the_exact_distance(n: int, m: int, d: int) -> None:
    x, y, step = gaussian(0, n, d), gaussian(1, m, d, 0.5, 0.1), 1e-2
    moved = np.concatenate([np.ones((n, n)) + step * np.eye(n), np.ones((n, n)) - step * np.eye(n)])
    up, down = distances(x, moved, Moments.of(y)).reshape(2, n)
    found = derivatives(x, Target.of(y))
    # differences are off by the square of the step, and by the rounding of exact values over the step
    np.testing.assert_allclose(found, (up - down) / (2 * step), atol=2e-4 * np.abs(found).max())


@pytest.mark.parametrize(("n", "d"), [(30, 8), (12, 20)])
def test_the_expansion_meets_the_exact_value_at_weights_of_one(n: int, d: int) -> None:
    x, y = gaussian(2, n, d), gaussian(3, 25, d)
    first, exact = (replicates(x, np.ones((1, n)), y, one_by_one) for one_by_one in (False, True))
    np.testing.assert_allclose(first, exact, rtol=1e-7)


def test_both_kinds_agree_where_rows_abound() -> None:
    x, y, w = gaussian(4, 600, 6), gaussian(5, 600, 6, 1.2, 0.1), multiplicities(0, 100, 600)
    first, exact = (replicates(x, w, y, one_by_one) for one_by_one in (False, True))
    assert np.corrcoef(first, exact)[0, 1] > 0.95
    assert first.std() == pytest.approx(exact.std(), rel=0.1)


def test_where_rows_are_few_only_the_first_order_scatters_as_new_samples_do() -> None:
    n, d = 60, 240
    y = gaussian(6, 60, d, 0.77, 0.05)
    samples = [gaussian(100 + k, n, d, 0.7) for k in range(150)]
    spread = np.std([Target.of(y).distance(x) for x in samples])
    first, exact = (
        np.mean([replicates(x, multiplicities(k, 60, n), y, kind).std() for k, x in enumerate(samples[:6])])
        for kind in (False, True)
    )
    assert 0.75 < first / spread < 1.33
    assert exact / spread > 1.5


def test_too_little_weight_is_undefined() -> None:
    x, y = gaussian(7, 5, 3), gaussian(8, 9, 3)
    for kind in (False, True):
        found = replicates(x, np.array([[1.0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]), y, kind)
        assert np.isnan(found[0]) and np.isfinite(found[1])


def test_replicates_are_exact_with_ten_rows_a_feature_while_that_is_cheap() -> None:
    assert is_exact(640, 64, 400)
    assert not is_exact(639, 64, 400)
    assert not is_exact(50_000, 2048, 400)
