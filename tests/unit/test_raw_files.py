# SPDX-License-Identifier: Apache-2.0
"""Raw files that are broken or too large, whatever they should hold: each is refused in one line with its name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_pictures import BLOCKS, IDS, RNG, assert_refused, picture_path, png, save, turned

from sis.data.raw import read_instance, read_label, read_mask, read_photograph
from sis.errors import SisError

READERS: dict[str, Callable[[Path], Any]] = {
    "photograph": lambda p: read_photograph(p, "refuse"),
    "label": lambda p: read_label(p, "refuse"),
    "instance": lambda p: read_instance(p, 16),
    "mask": read_mask,
}

path = pytest.fixture(picture_path)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    return READERS[request.param]


def test_a_file_that_is_missing_empty_a_folder_or_no_picture_is_refused(
    reader: Callable[[Path], Any], path: Path
) -> None:
    assert_refused(lambda: reader(path), path, "no such file")
    path.touch()
    assert_refused(lambda: reader(path), path, "empty file")
    path.write_text("<html>404</html>")
    assert_refused(lambda: reader(path), path, "16 bytes of another format")
    path.unlink()
    path.mkdir()
    assert_refused(lambda: reader(path), path, "not a file")


@pytest.fixture
def without_privileges() -> Iterator[None]:
    """Permissions bind root only while it is somebody else."""
    root = os.getuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_an_unreadable_file_is_refused(
    reader: Callable[[Path], Any], path: Path, request: pytest.FixtureRequest
) -> None:
    save(path, Image.fromarray(IDS)).chmod(0)
    for folder in (path.parent, path.parent.parent):
        folder.chmod(0o755)
    request.getfixturevalue("without_privileges")
    assert_refused(lambda: reader(path), path, "Permission denied.*check its permissions")


def test_a_png_cut_anywhere_is_refused(reader: Callable[[Path], Any], path: Path) -> None:
    data = save(path, Image.fromarray(IDS)).read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert_refused(lambda: reader(path), path, "truncated PNG" if length > 8 else "empty|another format|truncated")


def test_rows_that_are_missing_inside_sound_chunks_are_refused(path: Path) -> None:
    """A writer that gave up closed its file well; Pillow fills the rest with zeros, which are ids."""
    rows = [b"\0" + bytes([y] * 9) for y in range(5)]
    path.write_bytes(png(9, 5, 8, b"".join(rows)))
    np.testing.assert_array_equal(read_label(path, "refuse"), np.repeat(np.arange(5)[:, None], 9, 1))
    path.write_bytes(png(9, 5, 8, b"".join(rows[:3])))
    with Image.open(path) as picture:
        assert np.asarray(picture)[3:].max() == 0
    for read in (READERS["photograph"], READERS["label"], READERS["mask"]):
        assert_refused(lambda r=read: r(path), path, "truncated PNG: 30 of 50 bytes of pixels")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 5), (4, 4), (17, 3), (2, 9)])
def test_interlaced_pictures_are_read(path: Path, width: int, height: int) -> None:
    """Seven passes, each a smaller picture (PNG specification, section 8)."""
    values = RNG.integers(0, 256, (height, width), dtype=np.uint8)
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [values[y::down, x::across] for y, x, down, across in starts]
    rows = [b"\0" + row.tobytes() for part in passes if part.size for row in part]
    path.write_bytes(png(width, height, 8, b"".join(rows), interlaced=1))
    np.testing.assert_array_equal(read_label(path, "refuse"), values)
    path.write_bytes(png(width, height, 8, b"".join(rows)[:-1], interlaced=1))
    assert_refused(lambda: read_label(path, "refuse"), path, "truncated PNG")


def test_a_flipped_bit_in_a_png_is_refused(reader: Callable[[Path], Any], path: Path) -> None:
    data = save(path, Image.fromarray(IDS)).read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert_refused(lambda: reader(path), path, "damaged|truncated|another format|order of chunks")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"exif": turned(1)}], ids=["plain", "progressive", "exif"]
)
def test_a_jpeg_cut_anywhere_is_refused(path: Path, options: dict) -> None:
    """Cut in its last rows, or before its last scan, Pillow may show it without a word."""
    data = save(path, Image.fromarray(BLOCKS), "JPEG", **options).read_bytes()
    for length in range(3, len(data)):
        path.write_bytes(data[:length])
        assert_refused(lambda: read_photograph(path, "refuse"), path, r"truncated JPEG \(\d+ bytes\)")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(BLOCKS[:16, :16]).save(thumbnail, "JPEG")
    held = b"\xff\xe5" + struct.pack(">H", len(thumbnail.getvalue()) + 2) + thumbnail.getvalue()
    data = save(path, Image.fromarray(BLOCKS), "JPEG").read_bytes()
    path.write_bytes(data[:2] + held + data[2:])
    np.testing.assert_array_equal(
        read_photograph(path, "refuse")[0], read_photograph(save(path, Image.fromarray(BLOCKS), "JPEG"), "refuse")[0]
    )
    path.write_bytes(data[:2] + held + data[2:-40])
    assert_refused(lambda: read_photograph(path, "refuse"), path, "truncated JPEG")


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(path: Path) -> None:
    whole = read_photograph(save(path, Image.fromarray(BLOCKS), "JPEG"), "refuse")[0]
    path.write_bytes(path.read_bytes() + b"\xff\xda appended by a camera")
    np.testing.assert_array_equal(read_photograph(path, "refuse")[0], whole)


def test_damage_to_a_jpeg_gives_pixels_or_one_line(path: Path) -> None:
    """A JPEG has no checksums; but no byte of it may end in another error."""
    data = save(path, Image.fromarray(BLOCKS), "JPEG", exif=turned(6)).read_bytes()
    refused = 0
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            try:
                assert read_photograph(path, "apply")[0].dtype == np.uint8
            except SisError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(8_001, 8_000), (20_000, 20_000), (65_000, 65_000)])
def test_over_64_megapixels_are_refused_by_the_header(path: Path, kind: str, width: int, height: int) -> None:
    data = bytearray(save(path, Image.fromarray(BLOCKS), kind).read_bytes())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    path.write_bytes(data)
    assert_refused(lambda: read_photograph(path, "refuse"), path, f"picture of {width}x{height} is over 64 MP")
    if kind == "PNG":
        assert_refused(lambda: read_label(path, "refuse"), path, "is over 64 MP")


@pytest.mark.parametrize("first", [True, False])
def test_the_largest_of_two_frames_counts(path: Path, first: bool) -> None:
    """Readers differ in which of them they believe."""
    data = save(path, Image.fromarray(BLOCKS), "JPEG").read_bytes()
    begin = data.index(b"\xff\xc0")
    end = begin + 19
    frame, huge = data[begin:end], data[begin : begin + 5] + struct.pack(">HH", 9_000, 9_000) + data[begin + 9 : end]
    path.write_bytes(data[:begin] + (huge + frame if first else frame + huge) + data[end:])
    assert_refused(lambda: read_photograph(path, "refuse"), path, "picture of 9000x9000 is over 64 MP")
