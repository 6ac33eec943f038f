# SPDX-License-Identifier: Apache-2.0
"""Prior statistics: shards in any order are one pass, and assembled priors are always finite."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sis.priors.accumulator import Accumulator
from sis.priors.params import Kind, Policy
from sis.priors.prior import Prior
from sis.priors.statistics import Statistics

CLASSES, CHANNELS, SIZE = 5, 2, (3, 4)
KINDS: tuple[Kind, ...] = ("normal", "spatial", "categorical", "joint", "spatial_class")


def images(seed: int, count: int) -> tuple[NDArray, NDArray]:
    """Latents and labels; class 3 is rare, class 4 never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, (count, *SIZE), p=[0.6, 0.3, 0.09, 0.01])
    return rng.normal(size=(count, CHANNELS, *SIZE)) * 3 + 5 * labels[:, None], labels


def of(latents: NDArray, labels: NDArray) -> Accumulator:
    found = Accumulator(CLASSES, CHANNELS, SIZE)
    found.add(latents, labels)
    return found


def close(one: Accumulator, two: Accumulator) -> None:
    np.testing.assert_array_equal(one.count, two.count)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.m2, two.m2, rtol=1e-12, atol=1e-12 * max(1.0, float(two.m2.max())))


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 8), st.randoms(use_true_random=False))
def test_shards_in_any_order_equal_one_pass(seed: int, count: int, shards: int, order: random.Random) -> None:
    latents, labels = images(seed, count)
    parts = [of(x, y) for x, y in zip(np.array_split(latents, shards), np.array_split(labels, shards), strict=True)]
    order.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    whole = of(latents, labels)
    close(merged, whole)
    close(merged.over_classes(), whole.over_classes())
    close(merged.over_positions(), whole.over_positions())


@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 20))
def test_merging_commutes_and_nothing_is_neutral(seed: int, a: int, b: int) -> None:
    latents, labels = images(seed, a + b)
    one, two, empty = of(latents[:a], labels[:a]), of(latents[a:], labels[a:]), of(latents[:0], labels[:0])
    close(one.merge(two), two.merge(one))
    for found in (one.merge(empty), empty.merge(one)):
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(found.arrays()[name], array)


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_summing_an_axis_out_is_merging_along_it(seed: int, count: int) -> None:
    """The categorical prior of the whole is that of the positions merged one by one, as the formula is the same."""
    whole = of(*images(seed, count))
    parts = [
        Accumulator.from_arrays(*(array[..., y : y + 1, x : x + 1] for array in whole.arrays().values()))
        for y, x in np.ndindex(SIZE)
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    close(merged, whole.over_positions())


POLICIES = st.builds(
    Policy,
    fallback=st.sampled_from(["class", "spatial"]),
    min_count=st.integers(1, 6),
    ddof=st.sampled_from([0, 1]),
    shrinkage=st.sampled_from([0.0, 0.5, 7.0]),
    unknown=st.sampled_from([None, 0, 4]),
)


@given(st.integers(0, 2**31), st.integers(1, 8), POLICIES | st.just(Policy.released(unknown=3)), st.data())
def test_a_prior_is_finite_for_classes_seen_once_or_never(
    seed: int, count: int, policy: Policy, data: st.DataObject
) -> None:
    prior = Prior.of(Statistics(of(*images(seed, count))))
    labels = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, CLASSES, (3, *SIZE)))
    kind = data.draw(st.sampled_from(KINDS))
    mean, std = prior.maps(labels, kind, policy)
    assert mean.shape == std.shape == (3, CHANNELS, *SIZE) and mean.dtype == std.dtype == torch.float32
    assert bool(torch.isfinite(mean).all()) and bool(torch.isfinite(std).all()) and bool((std >= 0).all())
    assert sum(prior.assigned_share(labels, kind, policy).values()) == pytest.approx(1)


@given(st.integers(0, 2**31), st.floats(0.1, 50))
def test_shrinkage_goes_from_the_joint_prior_to_that_of_the_class(seed: int, k: float) -> None:
    latents, labels = images(seed, 30)
    prior = Prior.of(Statistics(of(latents, labels)))
    maps = torch.from_numpy(labels[:4])
    joint, of_class = prior.maps(maps, "joint"), prior.maps(maps, "categorical")
    mean, std = prior.maps(maps, "joint", Policy(shrinkage=k))
    n = prior.counts(maps)[:, None].float()
    torch.testing.assert_close(mean, (n * joint[0] + k * of_class[0]) / (n + k), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std**2, (n * joint[1] ** 2 + k * of_class[1] ** 2) / (n + k), rtol=1e-4, atol=1e-5)
