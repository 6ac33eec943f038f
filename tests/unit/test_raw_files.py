# SPDX-License-Identifier: Apache-2.0
"""Raw pictures: known pixels come back as they are, and every other kind of file is refused by name."""

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
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sis.data.raw import read_instance, read_label, read_mask, read_photograph
from sis.errors import SisError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 150, (6, 9), dtype=np.uint8)
DEEP = RNG.integers(0, 60_000, (6, 9), dtype=np.uint16)
#: Flat blocks of 16 pixels, so that JPEG keeps each block's colour.
COLOURS = np.array([[[250, 10, 10], [10, 240, 30]], [[20, 30, 230], [128, 128, 128]], [[0, 0, 0], [255, 255, 255]]])
BLOCKS = np.kron(COLOURS, np.ones((16, 16, 1))).astype(np.uint8)
READERS: dict[str, Callable[[Path], Any]] = {
    "photograph": lambda p: read_photograph(p, "refuse"),
    "label": lambda p: read_label(p, "refuse"),
    "instance": lambda p: read_instance(p, 16),
    "mask": read_mask,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.file"


def save(path: Path, image: Image.Image, kind: str = "PNG", **options: Any) -> Path:
    image.save(path, kind, **options)
    return path


def turned(orientation: int, **more: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_palette(indices: NDArray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    assert image.mode == "P"
    return image


def png(width: int, height: int, bits: int, rows: bytes, colour: int = 0, interlaced: int = 0, more: Any = ()) -> bytes:
    """A PNG of these rows, grey without a colour type, every checksum right."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def assert_refused(read: Callable[[], object], path: Path, words: str) -> None:
    with pytest.raises(SisError, match=words) as refusal:
        read()
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


# photographs


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


# files that are broken, whatever they should hold


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
