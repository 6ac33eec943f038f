# SPDX-License-Identifier: Apache-2.0
"""The accumulator of prior statistics: its definition, its refusals, its size and its speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from priors_example import Split

from sis.errors import SisError
from sis.priors.accumulator import Accumulator


def filled(split: Split, classes: int = 5) -> Accumulator:
    found = Accumulator(classes, 3, (4, 6))
    found.add(split.mean, split.small)
    return found


def test_every_cell_has_the_moments_of_its_tokens() -> None:
    split = Split.made(40, 4)
    found = filled(split)
    assert not found.count[4].any() and not found.mean[4].any() and not found.m2[4].any()
    for k, y, x in np.ndindex(4, 4, 6):
        tokens = split.mean[split.small[:, y, x] == k, :, y, x].astype(np.float64)
        assert found.count[k, y, x] == len(tokens)
        if len(tokens):
            np.testing.assert_allclose(found.mean[k, :, y, x], tokens.mean(0), rtol=1e-12)
            np.testing.assert_allclose(found.variance()[k, :, y, x], tokens.var(0), rtol=1e-10, atol=1e-14)


def test_classes_and_positions_follow_from_the_one_state() -> None:
    split = Split.made(30, 4)
    found = filled(split)
    of_place, of_class = found.over_classes(), found.over_positions()
    exact = split.mean.astype(np.float64)
    assert of_place.count.tolist() == np.full((1, 4, 6), 30).tolist()
    np.testing.assert_allclose(of_place.mean[0], exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(of_place.variance(1)[0], exact.var(0, ddof=1), rtol=1e-12)
    for k in range(4):
        tokens = exact.transpose(0, 2, 3, 1)[split.small == k]
        assert of_class.count[k, 0, 0] == len(tokens)
        np.testing.assert_allclose(of_class.mean[k, :, 0, 0], tokens.mean(0), rtol=1e-12)
        np.testing.assert_allclose(of_class.variance()[k, :, 0, 0], tokens.var(0), rtol=1e-12)


def test_numpy_and_torch_of_any_type_are_the_same() -> None:
    split = Split.made(6, 3)
    other = Accumulator(5, 3, (4, 6))
    other.add(torch.from_numpy(split.mean), torch.from_numpy(split.small).to(torch.uint8))
    for name, array in filled(split).arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)
    half = Accumulator(5, 3, (4, 6))
    half.add(torch.from_numpy(split.mean).bfloat16(), split.small)
    np.testing.assert_allclose(half.mean, other.mean, atol=0.05)


def test_only_chosen_tokens_count() -> None:
    split, rng = Split.made(20, 3), np.random.default_rng(1)
    chosen = rng.random(split.small.shape) < 0.3
    found = Accumulator(3, 3, (4, 6))
    found.add(split.mean, split.small, chosen)
    assert int(found.count.sum()) == int(chosen.sum())
    tokens = split.mean.astype(np.float64).transpose(0, 2, 3, 1)[chosen & (split.small == 1)]
    np.testing.assert_allclose(found.over_positions().mean[1, :, 0, 0], tokens.mean(0), rtol=1e-12)


def test_a_variance_says_where_it_is_undefined() -> None:
    found = Accumulator(2, 1, (1, 2))
    found.add(np.array([[[[3.0, 4.0]]]]), np.array([[[0, 0]]]))
    found.add(np.array([[[[5.0, 0.0]]]]), np.array([[[0, 1]]]))
    assert found.variance()[0, 0].tolist() == [[1.0, 0.0]]
    np.testing.assert_array_equal(found.variance(1)[:, 0, 0], [[2.0, np.nan], [0.0, np.nan]])


@pytest.mark.parametrize(
    ("latents", "labels", "says"),
    [
        (np.zeros((1, 3, 4, 5)), np.zeros((1, 4, 5), int), "these statistics are of 5 classes"),
        (np.zeros((1, 3, 4, 6)), np.zeros((1, 32, 48), int), "size of the latents"),
        (np.zeros((2, 3, 4, 6)), np.zeros((1, 4, 6), int), "latents"),
        (np.zeros((1, 3, 4, 6)), np.full((1, 4, 6), 5), "label id 5 in statistics of 5 classes"),
        (np.zeros((1, 3, 4, 6)), np.full((1, 4, 6), -1), "label id -1"),
        (np.full((1, 3, 4, 6), np.nan), np.zeros((1, 4, 6), int), "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(latents: np.ndarray, labels: np.ndarray, says: str) -> None:
    found = filled(Split.made(3, 3))
    before = {name: array.copy() for name, array in found.arrays().items()}
    with pytest.raises(SisError, match=says):
        found.add(latents, labels)
    assert all((found.arrays()[name] == array).all() for name, array in before.items())


def test_other_cells_are_not_merged() -> None:
    with pytest.raises(SisError, match="5 classes, 3 channels, 6x4 positions cannot be merged with those of 5 classes"):
        Accumulator(5, 3, (4, 6)).merge(Accumulator(5, 3, (6, 4)))


def test_the_state_goes_through_arrays_and_bad_ones_are_refused() -> None:
    found = filled(Split.made(9, 4))
    again = Accumulator.from_arrays(**found.arrays())
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    good = found.arrays()
    with pytest.raises(SisError, match="no prior statistics"):
        Accumulator.from_arrays(good["count"][:2], good["mean"], good["m2"])
    with pytest.raises(SisError, match="not finite, or negative"):
        Accumulator.from_arrays(good["count"], good["mean"] + np.inf, good["m2"])
    with pytest.raises(SisError, match="not finite, or negative"):
        Accumulator.from_arrays(good["count"], good["mean"], -good["m2"])


def test_the_state_of_coco_stuff_is_small_and_adding_is_fast() -> None:
    found, rng = Accumulator(183, 4, (64, 64)), np.random.default_rng(0)
    assert found.nbytes <= 60e6
    labels = np.kron(rng.integers(0, 183, (20, 8, 8)), np.ones((8, 8), np.int64))
    latents = rng.normal(size=(20, 4, 64, 64)).astype(np.float32)
    found.add(latents, labels)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        found.add(latents, labels)
        seconds.append((time.process_time() - start) / len(latents))
    assert min(seconds) <= 2e-3  # of processor time; measured: 0.33 ms
