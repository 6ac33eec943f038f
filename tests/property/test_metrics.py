# SPDX-License-Identifier: Apache-2.0
"""Laws of partials and metrics: any cut, any order, the same numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.bootstrap import multiplicities
from evaluators.frechet import Moments
from evaluators.groups import mean_of_maps
from evaluators.partial import Partial, merge, partial
from sis.errors import SisError

KEYS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", "é"]), st.integers(0, 3)), min_size=1, max_size=12, unique=True
)


def rows_of(keys: list[tuple[str, int]]) -> Partial:
    """Rows whose content follows from their key."""
    ids, samples = [k for k, _ in keys], [s for _, s in keys]
    value = np.array([[ord(k) + s / 7, s] for k, s in keys], np.float32).reshape(len(keys), 2)
    return partial(ids, samples, value=value)


def same(one: Partial, two: Partial) -> bool:
    return (
        one.image_ids == two.image_ids
        and np.array_equal(one.sample_indices, two.sample_indices)
        and all(np.array_equal(one.columns[k], two.columns[k]) for k in one.columns)
    )


@given(KEYS, st.data())
def test_merging_shards_in_any_cut_and_order_gives_the_same_rows(
    keys: list[tuple[str, int]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(keys))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=3)))
    bounds = [0, *cuts, len(keys)]
    shards = [rows_of(order[a:b]) for a, b in pairwise(bounds)]
    assert same(merge(shards), rows_of(keys))
    assert same(merge([merge(shards[:1]), *shards[1:]]), merge([*shards[:-1], merge(shards[-1:])]))


@given(KEYS)
def test_a_row_given_twice_is_refused(keys: list[tuple[str, int]]) -> None:
    with pytest.raises(SisError, match="measured more than once"):
        merge([rows_of(keys), rows_of(keys[:1])])


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_weights_of_one_are_the_plain_mean_and_weights_are_repeats(maps: int, pairs: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((maps, pairs)).astype(np.float32)
    rows = partial([f"m{i}" for i in range(maps)], [0] * maps, pairs=values)
    plain = mean_of_maps(rows, np.ones((1, maps))).value[0]
    assert plain == pytest.approx(values.astype(float).mean())
    weights = multiplicities(seed, 3, maps)
    repeated = [np.repeat(values.astype(float), w.astype(int), axis=0).mean() for w in weights]
    np.testing.assert_allclose(mean_of_maps(rows, weights).value, repeated)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_moments_of_parts_merge_to_the_moments_of_all(a: int, b: int, c: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(3, 2, (a + b + c, 4))
    one, two, three = Moments.of(x[:a]), Moments.of(x[a : a + b]), Moments.of(x[a + b :])
    for merged in (one.merge(two).merge(three), one.merge(two.merge(three)), three.merge(one).merge(two)):
        assert merged.n == len(x)
        np.testing.assert_allclose(merged.mean, x.mean(0))
        np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), atol=1e-12)


@given(st.integers(0, 2**31))
def test_frechet_distance_is_symmetric_and_not_negative(seed: int) -> None:
    from evaluators.frechet import distance

    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 3, size=(9, 3))
    one, two = Moments.of(x), Moments.of(y)
    assert distance(one, two) == pytest.approx(distance(two, one))
    assert distance(one, two) >= -1e-9
