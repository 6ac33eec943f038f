# SPDX-License-Identifier: Apache-2.0
"""Raw photographs: known pixels come back as they are or turned upright, other modes and formats are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from raw_pictures import BLOCKS, DEEP, IDS, assert_refused, picture_path, png, save, turned

from sis.data.raw import read_photograph

path = pytest.fixture(picture_path)


def test_a_photograph_is_read_as_it_is(path: Path) -> None:
    pixels, mode = read_photograph(save(path, Image.fromarray(BLOCKS)), "refuse")
    assert (mode, pixels.dtype) == ("RGB", np.uint8)
    np.testing.assert_array_equal(pixels, BLOCKS)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_jpeg_keeps_its_colours(path: Path, options: dict) -> None:
    save(path, Image.fromarray(BLOCKS), "JPEG", quality=95, subsampling=0, **options)
    pixels, mode = read_photograph(path, "refuse")
    assert mode == "RGB" and np.abs(pixels.astype(int) - BLOCKS).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_grey_photograph_gets_three_equal_channels(path: Path, kind: str) -> None:
    grey = np.kron(np.array([[0, 77], [200, 255]]), np.ones((16, 16))).astype(np.uint8)
    pixels, mode = read_photograph(save(path, Image.fromarray(grey), kind), "refuse")
    assert mode == "L" and pixels.shape == (32, 32, 3)
    assert np.abs(pixels.astype(int) - grey[..., None]).max() <= (1 if kind == "JPEG" else 0)
    assert (pixels == pixels[..., :1]).all()


def test_a_cmyk_jpeg_is_converted_and_not_inverted(path: Path) -> None:
    inks = {(0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 255): (0, 0, 0), (255, 0, 0, 0): (0, 255, 255)}
    inks[(0, 255, 255, 51)] = (204, 0, 0)
    for ink, rgb in inks.items():
        pixels, mode = read_photograph(save(path, Image.new("CMYK", (16, 16), ink), "JPEG", quality=100), "refuse")
        assert mode == "CMYK" and np.abs(pixels.astype(int) - rgb).max() <= 2, ink


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    pixels, _ = read_photograph(save(tmp_path / "x.jpg", Image.fromarray(BLOCKS), "PNG"), "refuse")
    np.testing.assert_array_equal(pixels, BLOCKS)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "I;16", "1"])
def test_a_photograph_of_another_mode_is_refused(path: Path, mode: str) -> None:
    image = Image.fromarray(DEEP) if mode == "I;16" else Image.fromarray(BLOCKS).convert(mode)
    assert image.mode == mode
    save(path, image)
    assert_refused(lambda: read_photograph(path, "refuse"), path, f"photograph of mode {mode}")


@pytest.mark.parametrize(
    ("bits", "colour", "row"), [(4, 0, b"\0\x01\x23"), (2, 0, b"\0\xe4"), (16, 2, b"\0" + b"\x01\x02" * 12)]
)
def test_a_photograph_whose_values_would_be_rescaled_is_refused(path: Path, bits: int, colour: int, row: bytes) -> None:
    path.write_bytes(png(4, 1, bits, row, colour))
    assert_refused(lambda: read_photograph(path, "refuse"), path, f"{bits} bits a channel")


@pytest.mark.parametrize(("kind", "mode"), [("TIFF", "F"), ("GIF", "L"), ("WEBP", "RGB"), ("BMP", "RGB")])
def test_a_photograph_of_another_format_is_refused(path: Path, kind: str, mode: str) -> None:
    save(path, Image.new(mode, (16, 16)), kind)
    assert_refused(lambda: read_photograph(path, "refuse"), path, "invalid JPEG or PNG: .* bytes of another format")


# orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photograph_is_refused_shown_as_stored_or_turned(path: Path, kind: str, orientation: int) -> None:
    save(path, Image.fromarray(BLOCKS), kind, exif=turned(orientation))
    words = rf"orientation {orientation}.*exif: ignore.*exif: apply"
    assert_refused(lambda: read_photograph(path, "refuse"), path, words)
    with Image.open(path) as picture:
        stored, upright = np.asarray(picture), np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read_photograph(path, "ignore")[0], stored)
    np.testing.assert_array_equal(read_photograph(path, "apply")[0], upright)
    assert not np.array_equal(stored, upright)


def test_a_turned_grey_photograph_is_turned_too(path: Path) -> None:
    save(path, Image.fromarray(IDS), exif=turned(6))
    np.testing.assert_array_equal(read_photograph(path, "apply")[0][..., 0], np.rot90(IDS, -1))


def test_orientation_one_is_upright(path: Path) -> None:
    save(path, Image.fromarray(BLOCKS), exif=turned(1))
    for exif in ("refuse", "ignore", "apply"):
        np.testing.assert_array_equal(read_photograph(path, exif)[0], BLOCKS)


def test_an_orientation_that_does_not_exist_is_refused_unless_ignored(path: Path) -> None:
    save(path, Image.fromarray(BLOCKS), exif=turned(9))
    assert_refused(lambda: read_photograph(path, "refuse"), path, "orientation 9")
    assert_refused(lambda: read_photograph(path, "apply"), path, "orientation 9, which does not exist")
    np.testing.assert_array_equal(read_photograph(path, "ignore")[0], BLOCKS)


def test_torn_metadata_are_refused_unless_ignored(path: Path) -> None:
    """Pillow only warns of it, and shows the picture as if it were upright."""
    save(path, Image.fromarray(BLOCKS), "JPEG", exif=turned(6))
    data = path.read_bytes()
    tag = data.index(struct.pack(">HH", 0x0112, 3))
    path.write_bytes(data[: tag + 4] + struct.pack(">I", 9999) + data[tag + 8 :])
    assert_refused(lambda: read_photograph(path, "refuse"), path, "torn metadata.*exif: ignore")
    assert read_photograph(path, "ignore")[0].shape == BLOCKS.shape
