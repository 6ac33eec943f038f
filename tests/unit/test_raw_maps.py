# SPDX-License-Identifier: Apache-2.0
"""Raw label maps, instance maps and masks: ids come back as they are, and what may hold other ids is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from raw_pictures import BLOCKS, DEEP, IDS, assert_refused, picture_path, png, save

from sis.data.raw import read_instance, read_label, read_mask

path = pytest.fixture(picture_path)


def with_palette(indices: NDArray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    assert image.mode == "P"
    return image


# labels


def test_label_values_are_read_as_they_are(path: Path) -> None:
    found = read_label(save(path, Image.fromarray(IDS)), "refuse")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IDS)


def test_labels_of_16_bits_are_read_as_they_are(path: Path) -> None:
    values = DEEP.copy()
    values[0, :4] = (0, 255, 256, 65_535)
    found = read_label(save(path, Image.fromarray(values)), "refuse")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "LA"])
def test_a_label_map_of_another_mode_is_refused(path: Path, mode: str) -> None:
    save(path, Image.fromarray(IDS).convert(mode))
    reason = {"RGB": "a colour picture, not ids", "1": "a bitmap, not ids"}.get(mode, "write it as a grey PNG")
    assert_refused(lambda: read_label(path, "refuse"), path, rf"label map of mode {mode}.*{reason}")


def test_a_label_map_is_never_a_jpeg(path: Path) -> None:
    save(path, Image.fromarray(IDS), "JPEG")
    assert_refused(lambda: read_label(path, "refuse"), path, "invalid PNG: the file is a JPEG.*write it as PNG")


def test_a_grey_label_map_of_4_bits_is_refused(path: Path) -> None:
    """Pillow would multiply its ids by 17."""
    path.write_bytes(png(4, 1, 4, b"\0\x01\x23"))
    assert_refused(lambda: read_label(path, "refuse"), path, "4 bits a channel")


COLOURED = [(7 * i % 256, 100, 255 - i) for i in range(256)]


def test_a_palette_label_map_is_refused_and_its_indices_read_on_demand(path: Path) -> None:
    save(path, with_palette(IDS, COLOURED))
    assert_refused(lambda: read_label(path, "refuse"), path, "palette picture.*ids would change.*palette: indices")
    np.testing.assert_array_equal(read_label(path, "indices"), IDS)


@pytest.mark.parametrize("colours", [2, 3, 13])
def test_indices_of_few_colours_are_not_stretched(path: Path, colours: int) -> None:
    """Pillow writes them with 1, 2 or 4 bits a pixel."""
    few = IDS % colours
    save(path, with_palette(few, COLOURED[:colours]))
    assert path.read_bytes()[24] in (1, 2, 4)
    np.testing.assert_array_equal(read_label(path, "indices"), few)


def test_a_grey_palette_that_differs_from_its_indices_is_refused_even_on_demand(path: Path) -> None:
    greys = [(255 - i,) * 3 for i in range(256)]
    save(path, with_palette(IDS, greys))
    assert_refused(lambda: read_label(path, "indices"), path, "every colour of this palette is grey.*may be either")


def test_a_grey_picture_whose_greys_a_tool_numbered_anew_is_refused(path: Path) -> None:
    values = np.array([[0, 11, 23], [23, 11, 200]], np.uint8)
    save(path, Image.fromarray(values).quantize(4, dither=Image.Dither.NONE))
    with Image.open(path) as picture:
        assert picture.mode == "P"
    assert_refused(lambda: read_label(path, "indices"), path, "every colour of this palette is grey")


def test_a_grey_palette_that_equals_its_indices_leaves_no_doubt(path: Path) -> None:
    save(path, with_palette(IDS, [(i, i, i) for i in range(256)]))
    np.testing.assert_array_equal(read_label(path, "indices"), IDS)


def test_an_index_without_a_colour_is_refused(path: Path) -> None:
    palette = (b"PLTE", bytes([9, 8, 7] * 3))
    path.write_bytes(png(3, 1, 8, b"\0\0\1\2", colour=3, more=[palette]))
    np.testing.assert_array_equal(read_label(path, "indices"), [[0, 1, 2]])
    path.write_bytes(png(3, 1, 8, b"\0\0\1\3", colour=3, more=[palette]))
    assert_refused(lambda: read_label(path, "indices"), path, "palette of 3 colours, but index 3 is used")


def test_one_class_whose_colour_happens_to_be_grey_is_read(path: Path) -> None:
    """A table of class colours holds greys, too: buildings of Cityscapes are (70, 70, 70), id 11."""
    colours = [*COLOURED[:11], (70, 70, 70), *COLOURED[12:]]
    only = np.full((4, 5), 11, np.uint8)
    save(path, with_palette(only, colours))
    np.testing.assert_array_equal(read_label(path, "indices"), only)


# instances and masks


def test_instances_of_16_bits_are_read_whole(path: Path) -> None:
    ids = np.array([[0, 26_001, 26_002], [33_000, 65_535, 7]], np.uint16)
    np.testing.assert_array_equal(read_instance(save(path, Image.fromarray(ids)), 16), ids)


def test_instances_of_8_bits_are_refused_where_16_are_expected(path: Path) -> None:
    save(path, Image.fromarray(IDS))
    words = "8 bits, expected 16: ids above 255 were cut off.*instance_bits: 8"
    assert_refused(lambda: read_instance(path, 16), path, words)
    found = read_instance(path, 8)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, IDS)


def test_instances_of_16_bits_are_refused_where_8_are_expected(path: Path) -> None:
    save(path, Image.fromarray(DEEP))
    assert_refused(lambda: read_instance(path, 8), path, "16 bits, expected 8")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mode", ["P", "RGB", "1"])
def test_instances_of_another_mode_are_refused(path: Path, mode: str, bits: int) -> None:
    save(path, Image.fromarray(IDS).convert(mode))
    assert_refused(lambda: read_instance(path, bits), path, f"instance map of mode {mode}.*grey PNG of {bits} bits")


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_a_mask_is_true_where_it_is_not_black(path: Path, mode: str) -> None:
    shape = np.array([[True, False, False], [False, True, True]])
    save(path, Image.fromarray(shape.astype(np.uint8) * 255).convert(mode))
    found = read_mask(path)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, shape)


def test_any_grey_but_black_is_inside_a_mask(path: Path) -> None:
    found = read_mask(save(path, Image.fromarray(np.array([[0, 1, 128, 255]], np.uint8))))
    np.testing.assert_array_equal(found, [[False, True, True, True]])


@pytest.mark.parametrize(
    ("mode", "words"), [("P", "mask of mode P"), ("RGBA", "mask of mode RGBA"), ("RGB", "colours")]
)
def test_a_doubtful_mask_is_refused(path: Path, mode: str, words: str) -> None:
    save(path, Image.fromarray(BLOCKS).convert(mode))
    assert_refused(lambda: read_mask(path), path, words)
