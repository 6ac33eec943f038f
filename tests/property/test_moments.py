# SPDX-License-Identifier: Apache-2.0
"""Moments of classes: parts merge to the whole, in any order and grouping, also for classes seen once or never."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sis.priors.moments import Moments

CLASSES, WIDTH = 5, 3


def drawn(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Vectors far from zero in classes 0..3; class 4 never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, count, p=[0.7, 0.25, 0.04, 0.01]).astype(np.uint8)
    return rng.normal(1000, 3, (count, WIDTH)) + 50 * labels[:, None], labels


def one_pass(vectors: NDArray, labels: NDArray) -> Moments:
    """The definition."""
    found = Moments.empty(CLASSES, WIDTH)
    for label in np.unique(labels):
        mine = vectors[labels == label]
        found.count[label], found.mean[label] = len(mine), mine.mean(0)
        found.m2[label] = ((mine - mine.mean(0)) ** 2).sum(0)
    return found


def close(one: Moments, two: Moments, rtol: float = 1e-12) -> None:
    np.testing.assert_array_equal(one.count, two.count)
    np.testing.assert_allclose(one.mean, two.mean, rtol=rtol)
    np.testing.assert_allclose(one.m2, two.m2, rtol=1e-9, atol=1e-8)


@given(st.integers(0, 2**31), st.integers(1, 300), st.data())
def test_merged_parts_equal_one_pass(seed: int, count: int, data: st.DataObject) -> None:
    vectors, labels = drawn(seed, count)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=5)))
    merged = Moments.empty(CLASSES, WIDTH)
    for a, b in pairwise([0, *cuts, count]):
        merged = merged.merge(Moments.of(vectors[a:b], labels[a:b], CLASSES))
    close(merged, one_pass(vectors, labels))
    close(Moments.of(vectors, labels, CLASSES), one_pass(vectors, labels))


@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_merging_is_associative_and_commutative(seed: int, a: int, b: int, c: int) -> None:
    vectors, labels = drawn(seed, a + b + c)
    slices = (slice(0, a), slice(a, a + b), slice(a + b, None))
    one, two, three = (Moments.of(vectors[s], labels[s], CLASSES) for s in slices)
    close(one.merge(two).merge(three), one.merge(two.merge(three)))
    close(one.merge(two), two.merge(one))


@given(st.integers(0, 2**31), st.integers(0, 60))
def test_nothing_is_neutral(seed: int, count: int) -> None:
    some = Moments.of(*drawn(seed, count), CLASSES)
    empty = Moments.empty(CLASSES, WIDTH)
    for found in (some.merge(empty), empty.merge(some)):
        np.testing.assert_array_equal(found.count, some.count)
        np.testing.assert_array_equal(found.mean, some.mean)
        np.testing.assert_array_equal(found.m2, some.m2)


@given(st.integers(0, 2**31))
def test_a_class_seen_once_or_never_has_no_spread_and_no_nan(seed: int) -> None:
    vectors, _ = drawn(seed, 3)
    labels = np.array([0, 0, 2], np.uint8)
    found = Moments.of(vectors[:2], labels[:2], CLASSES).merge(Moments.of(vectors[2:], labels[2:], CLASSES))
    assert found.count.tolist() == [2, 0, 1, 0, 0]
    assert all(np.isfinite(a).all() for a in found.arrays().values())
    np.testing.assert_array_equal(found.mean[2], vectors[2])
    assert not found.m2[2].any() and not found.mean[[1, 3, 4]].any() and not found.m2[[1, 3, 4]].any()


def test_a_small_spread_far_from_zero_survives() -> None:
    vectors = 1e8 + np.array([[0.0], [1.0], [2.0]])
    labels = np.zeros(3, np.uint8)
    parts = [Moments.of(vectors[i : i + 1], labels[i : i + 1], 1) for i in range(3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.m2[0, 0] == pytest.approx(2.0, rel=1e-7)


def test_everything_is_float64_and_named() -> None:
    found = Moments.of(*drawn(0, 10), CLASSES).arrays()
    assert set(found) == {"count", "mean", "m2"}
    assert all(a.dtype == np.float64 for a in found.values())
    assert found["count"].shape == (CLASSES,) and found["mean"].shape == found["m2"].shape == (CLASSES, WIDTH)
