# SPDX-License-Identifier: Apache-2.0
"""Hints of one-hot label maps: which colour each channel has, and the picture that a ControlNet sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sis.config.files import label_space
from sis.data.hints import Palette, channel_palette, coloured, grid_palette, hint, hints_of, voc_palette

TABLES = ["ade20k", "coco_stuff", "cityscapes", "cityscapes_train_ids", "scenes"]


@pytest.mark.parametrize("name", ["grid", "voc", "colours"])
@pytest.mark.parametrize("table", TABLES)
def test_every_channel_has_a_colour_and_void_is_black(table: str, name: Palette) -> None:
    space = label_space(table)
    palette = channel_palette(space, name)
    assert palette.shape == (space.width, 3) and palette.dtype == np.uint8
    if space.void is not None:
        assert palette[-1].tolist() == [0, 0, 0]


def test_the_palettes_colour_what_label_files_hold() -> None:
    ade, coco = label_space("ade20k"), label_space("coco_stuff")
    # ADE20K's files hold 1 for the first class and 0 for what no class owns.
    assert channel_palette(ade, "grid")[[0, 1, 149, 150]].tolist() == [[0, 0, 30], [0, 0, 60], [90, 0, 90], [0, 0, 0]]
    np.testing.assert_array_equal(channel_palette(ade, "grid")[:150], grid_palette(151)[1:])
    dead = [c.id for c in coco.classes if c.dead]
    np.testing.assert_array_equal(channel_palette(coco, "voc")[:182], voc_palette(182, dead))
    assert len(dead) == 11 and not channel_palette(coco, "voc")[dead].any()


def test_cityscapes_hints_have_the_colours_of_its_table() -> None:
    space = label_space("cityscapes")
    expected = [c.colour for c in space.classes]
    assert channel_palette(space, "colours")[: space.count].tolist() == expected


def test_hints_are_the_coloured_maps_of_the_released_loader() -> None:
    space = label_space("ade20k")
    ids = np.random.default_rng(0).integers(0, 150, (2, 6, 9), dtype=np.uint8)
    ids[0, 0, 0] = 255
    found = hints_of(torch.from_numpy(space.channels(ids)).long(), channel_palette(space, "grid"))
    assert found.shape == (2, 3, 6, 9) and found.dtype == torch.float32
    for picture, label in zip(found, ids, strict=True):
        expected = hint(coloured(space.to_file(label), grid_palette(151)), (6, 9))
        np.testing.assert_allclose(picture.permute(1, 2, 0), expected, atol=1e-6)
