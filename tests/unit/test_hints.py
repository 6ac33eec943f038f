# SPDX-License-Identifier: Apache-2.0
"""Colour-coded hints: palettes by their rules, resizing in float and in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.data.hints import coloured, grid_palette, hint, target, voc_palette
from sis.errors import SisError

GENERATOR = np.random.default_rng(0)
PICTURE = GENERATOR.integers(0, 256, (20, 31, 3), dtype=np.uint8)


def test_the_grid_gives_every_value_of_ade20k_a_colour_of_its_own() -> None:
    palette = grid_palette(151)
    assert palette.shape == (151, 3) and palette.dtype == np.uint8
    assert [palette[v].tolist() for v in (0, 1, 7, 49, 150)] == [
        [0, 0, 0], [0, 0, 30], [0, 30, 0], [30, 0, 0], [90, 0, 90],
    ]  # fmt: skip
    assert len(np.unique(palette, axis=0)) == 151


def test_voc_colours_begin_after_its_background_and_dead_ids_are_black() -> None:
    # The first classes of Pascal VOC: aeroplane, bicycle, bird; the eighth, cat, has the first quarter tone.
    palette = voc_palette(182, [11, 90])
    assert palette[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]] and palette[7].tolist() == [64, 0, 0]
    assert np.flatnonzero(~palette.any(axis=1)).tolist() == [11, 90]
    assert len(np.unique(palette, axis=0)) == 181


@pytest.mark.parametrize("count", [0, 257])
def test_a_palette_of_no_byte_is_refused(count: int) -> None:
    for palette in (grid_palette, lambda n: voc_palette(n, [])):
        with pytest.raises(SisError, match=f"1 to 256 colours, found {count}"):
            palette(count)


def test_a_value_outside_the_palette_is_refused_unless_it_is_said_to_be_black() -> None:
    values = np.array([[0, 150, 255]], np.uint8)
    with pytest.raises(SisError, match=r"without a colour: \[255\].*the palette has 151"):
        coloured(values, grid_palette(151))
    assert coloured(values, grid_palette(151), black=255).tolist() == [[[0, 0, 0], [90, 0, 90], [0, 0, 0]]]


@given(st.tuples(*[st.integers(1, 40)] * 4), st.booleans(), st.integers(0, 255))
def test_a_picture_of_one_colour_keeps_it_at_every_size(sizes: tuple, whole_levels: bool, level: int) -> None:
    plain = np.full((*sizes[:2], 3), level, np.uint8)
    found = hint(plain, sizes[2:], whole_levels)
    assert found.shape == (*sizes[2:], 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, level / 255, atol=2e-6)
    np.testing.assert_allclose(target(plain, sizes[2:], whole_levels), level / 127.5 - 1, atol=4e-6)


def test_bytes_give_whole_levels_and_floats_what_lies_between() -> None:
    levels = 255 * hint(PICTURE, (13, 17), whole_levels=True)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    between = 255 * hint(PICTURE, (13, 17))
    np.testing.assert_allclose(np.rint(between), levels, atol=1e-4)
    assert np.abs(between - np.rint(between)).max() > 0.3


def test_a_picture_of_the_right_size_is_only_scaled() -> None:
    for whole_levels in (False, True):
        np.testing.assert_allclose(hint(PICTURE, (20, 31), whole_levels), PICTURE / 255, atol=1e-6)
        np.testing.assert_allclose(target(PICTURE, (20, 31), whole_levels), PICTURE / 127.5 - 1, atol=1e-6)
