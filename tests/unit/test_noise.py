# SPDX-License-Identifier: Apache-2.0
"""Keyed noise: what a method may ask for, and bits that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from sis.diffusion.noise import Noise

KEYS = (("a", 0), ("a", 1), ("b", 0))
#: Digests of noise drawn once: another value would change every published image.
FROZEN = {"bits": "ff5c7f4273104dd1", "normal": "2321deb666536400", "uniform": "702567f199738ab4"}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


def test_shapes_and_types() -> None:
    noise = Noise(0, KEYS)
    assert noise.normal("x", 0, (3, 4, 5)).shape == (3, 3, 4, 5)
    assert noise.normal("x", 0, (3,)).dtype == noise.uniform("x", 0, (3,)).dtype == torch.float32
    assert noise.integers("x", 0, (), 7).shape == (3,)
    assert noise.integers("x", 0, (2,), 7).dtype == noise.bits("x", 0, (2,)).dtype == torch.int64


def test_ranges() -> None:
    noise = Noise(1, KEYS)
    uniform, bits = noise.uniform("u", 0, (20_000,)), noise.bits("u", 0, (20_000,))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert (
        bits.min() >= 0 and bits.max() < 2**32 and (bits >= 2**31).float().mean().item() == pytest.approx(0.5, abs=0.01)
    )
    whole = noise.integers("i", 0, (20_000,), 10)
    assert sorted(whole.unique().tolist()) == list(range(10))
    counts = whole.flatten().bincount().double()
    assert float(((counts - 6000) ** 2 / 6000).sum()) < 27.9  # chi-square of 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("high", [1, 2**31])
def test_integers_at_the_ends_of_their_range(high: int) -> None:
    found = Noise(0, KEYS).integers("i", 0, (1000,), high)
    assert found.min() >= 0 and found.max() < high


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    noise = Noise(0, KEYS)
    assert torch.equal(noise.normal("x", 2, (9,))[:, :5], noise.normal("x", 2, (5,)))


def test_asking_again_gives_the_same_numbers_and_leaves_torch_alone() -> None:
    before = torch.get_rng_state()
    noise = Noise(0, KEYS)
    one, two = noise.normal("x", 0, (8,)), noise.normal("x", 0, (8,))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_number_of_threads_changes_no_bit() -> None:
    noise = Noise(3, KEYS)
    single = noise.normal("x", 0, (3, 64, 64))
    torch.set_num_threads(2)
    double = noise.normal("x", 0, (3, 64, 64))
    torch.set_num_threads(1)
    assert torch.equal(single, double)


def test_normal_numbers_are_finite_and_reach_the_tails() -> None:
    x = Noise(0, tuple((str(i), 0) for i in range(20))).normal("x", 0, (100_000,))
    assert torch.isfinite(x).all()
    assert 4.5 < x.abs().max() < 6.6
    assert x.abs().min() < 1e-5


def test_the_bits_are_frozen() -> None:
    noise = Noise(7, (("val-00000", 0), ("val-00001", 3)))
    assert digest(noise.bits("start", 0, (3, 8, 8))) == FROZEN["bits"]
    assert digest(noise.normal("start", 0, (3, 8, 8))) == FROZEN["normal"]
    assert digest(noise.uniform("start", 5, (3, 8, 8))) == FROZEN["uniform"]


def test_images_of_one_batch_are_not_correlated() -> None:
    x = Noise(0, tuple((f"i{i}", 0) for i in range(30))).normal("x", 0, (4000,)).double().numpy()
    correlation = np.corrcoef(x) - np.eye(30)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
