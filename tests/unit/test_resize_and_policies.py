# SPDX-License-Identifier: Apache-2.0
"""Preparation policies: what they keep, cut and refuse, and that storing loses nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sis.config.cards import Preparation
from sis.data.labels import LabelClass, LabelSpace
from sis.data.pair import Pair
from sis.data.pairs import decode_row, pair_row
from sis.data.policies import Policy, policy_of
from sis.data.resize import bilinear, halve, halvings, nearest, rounded
from sis.errors import SisError

SIDE = 24
CLASSES = [LabelClass(id=i, name=f"class {i}", colour=[i, i, i]) for i in range(19)]
SPACE = LabelSpace(name="nineteen", void=255, classes=CLASSES)


def policy(name: str, size: tuple[int, int], fidelity: Literal["paper", "release"] = "paper") -> Policy:
    return policy_of(Preparation(policy=name, fidelity=fidelity), size, SPACE)


def raw_pair(size: tuple[int, int], seed: int = 0) -> Pair:
    """A pair of noise."""
    generator = np.random.default_rng(seed)
    photo = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = generator.integers(0, 19, size, dtype=np.uint8)
    return Pair("a", photo, label, generator.integers(0, 65536, size).astype(np.uint16))


def drawn(purpose: str, low: int, high: int, seed: int) -> int:
    return int(np.random.default_rng([seed, *purpose.encode()]).integers(low, high))


def assert_same(a: Pair, b: Pair) -> None:
    for name in ("photograph", "label", "instance"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)


Sizes = st.tuples(*[st.integers(SIDE // 2, 9 * SIDE)] * 2)


@given(Sizes, st.integers(0, 10**6), st.sampled_from(["paper", "release"]))
def test_what_sdm_keeps_gives_the_same_views_and_cuts_as_the_raw_pair(
    size: tuple[int, int], seed: int, fidelity: Literal["paper", "release"]
) -> None:
    chosen, pair = policy("sdm", (SIDE, SIDE), fidelity), raw_pair(size, seed)
    kept = chosen.keep(pair)
    assert_same(chosen.view(kept), chosen.view(pair))
    cuts = [chosen.augment(p, lambda what, low, high: drawn(what, low, high, seed)) for p in (kept, pair)]
    assert_same(*cuts)
    assert cuts[0].image.shape == (SIDE, SIDE, 3) and cuts[0].source_label is None
    # The largest draw is 30: what is stored could not be halved once more for it.
    assert min(kept.image.shape[:2]) < 60


@given(Sizes, st.integers(0, 10**6))
def test_a_shard_gives_back_what_was_kept(size: tuple[int, int], seed: int) -> None:
    chosen = policy("sdm", (SIDE, SIDE))
    for pair in (chosen.keep(raw_pair(size, seed)), chosen.view(raw_pair(size, seed))):
        back = decode_row(pair_row(pair, (SIDE, SIDE)), "a shard")
        assert_same(back, pair)
        assert (back.source_label is None) == (pair.source_label is None)
        if pair.source_label is not None:
            np.testing.assert_array_equal(back.source_label, pair.source_label)


def test_sdm_draws_a_short_side_up_to_five_quarters_then_a_crop_inside() -> None:
    asked: list[tuple[str, int, int]] = []

    def last(purpose: str, low: int, high: int) -> int:
        asked.append((purpose, low, high))
        return high - 1

    policy("sdm", (SIDE, SIDE)).augment(raw_pair((50, 75)), last)
    assert asked == [("short side", 24, 31), ("crop row", 0, 7), ("crop column", 0, 22)]


def test_the_aspect_of_a_cut_is_that_of_the_halved_photograph() -> None:
    # 51 x 78 is halved to 25 x 39, which stays; 78 * 25 / 51 would be 38.
    asked = {}

    def least(purpose: str, low: int, high: int) -> int:
        asked[purpose] = high
        return low

    policy("sdm", (25, 25)).augment(raw_pair((51, 78)), least)
    assert asked["crop column"] == 39 - 25 + 1


def test_photograph_labels_and_instances_are_cut_at_the_same_place() -> None:
    label = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((30, 30), np.uint8))
    photo = np.repeat(label[..., None] * np.uint8(16), 3, axis=2)
    chosen = policy("sdm", (SIDE, SIDE))
    for seed in range(5):
        cut = chosen.augment(Pair("a", photo, label, label.astype(np.uint16)), lambda *a, s=seed: drawn(*a, s))
        np.testing.assert_array_equal(cut.instance, cut.label)
        assert (np.abs(cut.image[..., 0] / 16 - cut.label) < 0.5).mean() > 0.6
        assert len(np.unique(cut.label)) >= 9


def test_sdm_squashes_for_judging_and_remembers_the_label_map() -> None:
    pair = raw_pair((40, 90))
    seen = policy("sdm", (SIDE, SIDE)).view(pair)
    assert seen.image.shape == (SIDE, SIDE, 3) and seen.label.shape == (SIDE, SIDE)
    assert seen.source_label is pair.label


@pytest.mark.parametrize("name", ["sdm", "sdm_aspect"])
def test_only_the_released_code_cuts_instances_off_at_255(name: str) -> None:
    pair = replace(raw_pair((SIDE, SIDE)), instance=np.full((SIDE, SIDE), 26001, np.uint16))
    for fidelity, found in (("paper", 26001), ("release", 255)):
        seen = policy(name, (SIDE, SIDE), fidelity).view(pair).instance
        assert seen is not None and seen.dtype == np.uint16 and (seen == found).all()


def test_sdm_aspect_keeps_the_aspect_and_refuses_a_size_that_has_another() -> None:
    seen = policy("sdm_aspect", (SIDE, 2 * SIDE)).view(raw_pair((64, 128)))
    assert seen.image.shape == (SIDE, 2 * SIDE, 3)
    with pytest.raises(SisError, match=r"\(64, 96\) becomes \(24, 36\).*\(24, 48\)"):
        policy("sdm_aspect", (SIDE, 2 * SIDE)).view(raw_pair((64, 96)))


def test_exact_takes_pictures_of_its_size_only() -> None:
    pair = raw_pair((SIDE, SIDE))
    assert policy("exact", (SIDE, SIDE)).view(pair) is pair
    with pytest.raises(SisError, match="choose a policy that resizes"):
        policy("exact", (SIDE, SIDE + 1)).view(pair)


def test_scp_takes_label_values_from_the_source_and_only_the_released_code_invents_some() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 255
    pair = replace(raw_pair((40, 40)), label=label)
    right = policy("scp", (SIDE, 30)).view(pair)
    assert right.image.shape == (SIDE, 30, 3) and right.source_label is label
    assert set(np.unique(right.label)) == {0, 255}
    blended = policy("scp", (SIDE, 30), "release").view(pair).label
    assert {0, 255} < set(np.unique(blended))
    np.testing.assert_array_equal(blended, rounded(bilinear(label, (SIDE, 30))))


def test_the_released_label_maps_are_blended_in_file_values_as_ade20k_stores_them() -> None:
    space = LabelSpace(name="offset", void=255, file_offset=1, file_void=[0], classes=CLASSES)
    values = np.tile(np.array([0, 10], np.uint8), (16, 16)).reshape(16, 32)
    pair = Pair("a", None, space.from_file(values))
    seen = policy_of(Preparation(policy="scp", fidelity="release"), (16, 20), space).view(pair).label
    expected = rounded(bilinear(values, (16, 20)))
    np.testing.assert_array_equal(space.to_file(seen), expected)
    assert ((seen == 255) == (expected == 0)).all() and len(np.unique(expected)) > 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_nearest_takes_the_centres_of_the_cells(dtype: type) -> None:
    ids: NDArray = (np.arange(36).reshape(6, 6) * (1 if dtype == np.uint8 else 1800)).astype(dtype)
    found = nearest(ids, (2, 3))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ids[1::3, 1::2])


def test_pictures_are_halved_while_the_short_side_is_at_least_twice_the_target() -> None:
    assert [halvings((s, 1000), 32) for s in (63, 64, 127, 128, 256)] == [0, 1, 1, 2, 3]
    blocks = np.arange(0, 240, 10, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(halve(np.kron(blocks, np.ones((4, 4, 1), np.uint8)), 2), blocks)


def test_a_policy_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"'sdm_aspct'.*sdm_aspect"):
        policy("sdm_aspct", (SIDE, SIDE))
