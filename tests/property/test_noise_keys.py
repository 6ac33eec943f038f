# SPDX-License-Identifier: Apache-2.0
"""Laws of keyed noise: its bits belong to a key, whoever else is in the batch; and they are good random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from sis.diffusion.noise import Noise, philox, philox_rounds

KEYS = st.lists(st.tuples(st.text(min_size=1, max_size=6), st.integers(0, 999)), min_size=1, max_size=8, unique=True)
SHAPE = st.sampled_from([(), (1,), (3,), (5,), (3, 4, 4), (2, 3, 5)])


@given(KEYS, st.data(), st.integers(0, 2**40), st.text(max_size=5), st.integers(0, 2000), SHAPE)
def test_noise_of_an_image_does_not_depend_on_its_batch(
    keys: list[tuple[str, int]], data: st.DataObject, seed: int, purpose: str, step: int, shape: tuple[int, ...]
) -> None:
    batch = Noise(seed, tuple(keys)).normal(purpose, step, shape)
    order = data.draw(st.permutations(range(len(keys))))
    cut = data.draw(st.integers(1, len(keys)))
    other = Noise(seed, tuple(keys[i] for i in order[:cut])).normal(purpose, step, shape)
    for place, i in enumerate(order[:cut]):
        assert torch.equal(other[place], batch[i])
    padded = Noise(seed, (*keys, keys[-1], keys[-1])).normal(purpose, step, shape)
    assert torch.equal(padded[: len(keys)], batch) and torch.equal(padded[-1], batch[-1])


FIELDS = st.tuples(
    st.integers(0, 50), st.sampled_from(["a", "b", "ab", "a1", "é", ""]), st.integers(0, 20),
    st.sampled_from(["eps", "t", "start", "ep", ""]), st.integers(0, 50),
)  # fmt: skip


def drawn(fields: tuple[int, str, int, str, int]) -> Tensor:
    seed, image_id, sample, purpose, step = fields
    return Noise(seed, ((image_id, sample),)).bits(purpose, step, (8,))


@given(FIELDS, FIELDS)
def test_different_keys_give_different_noise(one: tuple, two: tuple) -> None:
    assert torch.equal(drawn(one), drawn(two)) == (one == two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((1, "1", 1, "x", 0), (11, "", 1, "x", 0)),
        ((0, "a", 11, "x", 0), (0, "a1", 1, "x", 0)),
        ((0, "a", 1, "1x", 0), (0, "a", 11, "x", 0)),
        ((0, "a", 0, "x", 1), (0, "a", 1, "x", 0)),
        ((0, "a", 0, "x1", 0), (0, "a", 0, "x", 1)),
    ],
)
def test_fields_of_a_key_never_run_together(one: tuple, two: tuple) -> None:
    assert not torch.equal(drawn(one), drawn(two))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_blocks_are_counted_from_zero(k0: int, k1: int, step: int) -> None:
    key = torch.tensor([[k0, k1]])
    many = philox(key, torch.arange(5), step)
    assert many.shape == (1, 5, 4) and many.min() >= 0 and many.max() < 2**32
    assert torch.equal(philox(key, torch.tensor([3]), step)[0, 0], many[0, 3])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> list[Tensor]:
        return [torch.tensor([int(word, 16)]) for word in text.split()]

    found = philox_rounds(words(counter), *words(key))
    assert " ".join(f"{v:08x}" for v in found.flatten().tolist()) == expected


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return Noise(11, tuple((f"image-{i}", 0) for i in range(50))).normal("test", 0, (20_000,)).double().numpy()


def test_moments_of_the_normal_numbers(normals: np.ndarray) -> None:
    n = normals.size
    assert abs(normals.mean()) < 4 / np.sqrt(n)
    assert abs(normals.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(normals, axis=None)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(normals, axis=None)) < 4 * np.sqrt(24 / n)


def test_normal_numbers_pass_kolmogorov_and_smirnov(normals: np.ndarray) -> None:
    assert stats.kstest(normals.ravel()[:200_000], "norm").pvalue > 1e-3
    each = [stats.kstest(row[:5000], "norm").pvalue for row in normals]
    assert stats.kstest(each, "uniform").pvalue > 1e-3


def test_neighbouring_numbers_are_not_correlated(normals: np.ndarray) -> None:
    for lag in (1, 2, 3, 4, 64):
        correlation = (normals[:, lag:] * normals[:, :-lag]).mean()
        assert abs(correlation) < 4.5 / np.sqrt(normals[:, lag:].size)


def test_uniform_numbers_are_uniform() -> None:
    x = Noise(3, (("a", 0),)).uniform("u", 1, (100_000,)).numpy().ravel()
    assert stats.kstest(x, "uniform").pvalue > 1e-3


def test_normal_numbers_are_the_inverse_of_the_normal_distribution_up_to_the_far_tails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = torch.arange(0, 3000)
    spread = torch.linspace(0, 2**31 - 1, 5001, dtype=torch.float64).long()
    bits = torch.cat([near, spread, near + 2**31, spread + 2**31])
    monkeypatch.setattr(Noise, "bits", lambda self, purpose, step, shape: bits)
    found = Noise(0, ()).normal("x", 0, ()).double().numpy()
    # The lower 31 bits count from the end of the tail: P(|x| > found) = (k + 1/2) / 2^31.
    tail = ((bits & 0x7FFFFFFF).double().numpy() + 0.5) / 2**31
    expected = -special.ndtri(tail / 2) * np.where(bits.numpy() >= 2**31, -1, 1)
    usual = np.abs(expected) < 5.5
    np.testing.assert_allclose(found[usual], expected[usual], rtol=1e-6, atol=2e-7)
    # One number in 26 million lies beyond 5.5; there the approximation runs out of its range, by 0.0025 at most.
    assert (~usual).any()
    np.testing.assert_allclose(found[~usual], expected[~usual], rtol=4e-4)
    assert (np.diff(found[:3000]) <= 0).all()
