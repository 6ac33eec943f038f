# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance against pytorch-fid's function, its moments in parts, and what singular covariances give."""

from __future__ import annotations

import tracemalloc
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from feature_rows import gaussian
from hypothesis import given
from hypothesis import strategies as st

from evaluators import frechet
from evaluators.frechet import Moments, Target, distance, factor, singular_values, trace_of_root

#: Rows of ours and of the reference, and features: each route that a distance can take.
ROUTES = [(40, 60, 8), (40, 6, 8), (5, 60, 8), (5, 6, 8), (8, 8, 8), (2, 2, 8)]


@pytest.mark.parametrize(("n", "m", "d"), ROUTES)
def test_the_fast_routes_give_the_distance_of_the_moments(n: int, m: int, d: int) -> None:
    x, y = gaussian(0, n, d), gaussian(1, m, d, 0.5, 0.3)
    assert Target.of(y).distance(x) == pytest.approx(distance(Moments.of(x), Moments.of(y)), rel=1e-7)
    assert Target.of(x).distance(y) == pytest.approx(Target.of(y).distance(x), rel=1e-7)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 8), (200, 150, 64)])
def test_it_equals_pytorch_fid_where_covariances_have_full_rank(n: int, m: int, d: int) -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance

    x, y = gaussian(2, n, d), gaussian(3, m, d, 0.5, 0.1)
    theirs = calculate_frechet_distance(
        x.astype(float).mean(0), np.cov(x.astype(float), rowvar=False),
        y.astype(float).mean(0), np.cov(y.astype(float), rowvar=False),
    )  # fmt: skip
    assert Target.of(y).distance(x) == pytest.approx(theirs, rel=1e-6)
    assert distance(Moments.of(x), Moments.of(y)) == pytest.approx(theirs, rel=1e-6)


@given(st.integers(0, 2**31), st.integers(2, 60), st.data())
def test_moments_of_parts_are_those_of_the_whole_however_they_are_merged(
    seed: int, count: int, data: st.DataObject
) -> None:
    x = gaussian(seed, count, 4) + 100
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=5)))
    parts = [Moments.of(x[a:b]) for a, b in pairwise([0, *cuts, count])]
    left = reduce(Moments.merge, parts)
    right = reduce(lambda later, earlier: earlier.merge(later), reversed(parts))
    for found in (left, right):
        assert found.n == count
        np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False), atol=1e-11)


def test_many_rows_are_never_all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(4, 20_000, 32) + 1000
    whole = Moments.of(x)
    monkeypatch.setattr(frechet, "_AT_ONCE", 2**14)
    tracemalloc.start()
    found = Moments.of(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.size * 8 / 4
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(found.scatter, whole.scatter, atol=1e-12 * float(np.diag(whole.scatter).max()))


def test_rows_taken_in_parts_may_have_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(5, 30, 4)
    w = np.repeat([0.0, 1.0, 2.0], 10)  # the first parts weigh nothing
    monkeypatch.setattr(frechet, "_AT_ONCE", 12)
    found = Moments.of(x, w)
    repeated = np.repeat(x.astype(np.float64), w.astype(int), axis=0)
    assert found.n == 30
    np.testing.assert_allclose(found.mean, repeated.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(repeated, rowvar=False), rtol=1e-9, atol=1e-12)


def test_a_factor_has_the_covariance_as_its_square_also_where_rank_is_missing() -> None:
    full, flat = np.cov(gaussian(6, 20, 5), rowvar=False), np.cov(gaussian(6, 3, 5), rowvar=False)
    flat[2], flat[:, 2] = 0, 0  # a feature that never changes
    for s in (full, flat, np.zeros((5, 5))):
        np.testing.assert_allclose(factor(s) @ factor(s).T, s, atol=1e-14)


def test_singular_covariances_give_real_numbers_without_anything_added() -> None:
    y = gaussian(7, 50, 6)
    same = Moments.of(np.tile(y[:1], (4, 1)))  # four copies of one row: no spread
    assert distance(same, Moments.of(y)) == pytest.approx(
        ((y[0] - y.mean(0)) ** 2).sum() + np.trace(np.cov(y, rowvar=False)), rel=1e-6
    )
    assert trace_of_root(same.covariance, same.covariance) == 0
    few = gaussian(8, 3, 6)
    assert Target.of(few).distance(few) == pytest.approx(0, abs=1e-7)


def test_singular_values_of_wide_and_tall_matrices() -> None:
    z = np.random.default_rng(9).normal(size=(4, 7))
    expected = np.linalg.svd(z, compute_uv=False)
    np.testing.assert_allclose(np.sort(singular_values(z))[::-1], expected, rtol=1e-7)
    np.testing.assert_allclose(np.sort(singular_values(z.T))[::-1], expected, rtol=1e-7)
