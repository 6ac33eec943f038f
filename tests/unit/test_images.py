# SPDX-License-Identifier: Apache-2.0
"""Pictures: lossless, repeatable, and refused when in doubt."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sis.data.images import decode_png, encode_png, pixel_sha256
from sis.errors import SisError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("array", "mode"), [(RGB, "RGB"), (GREY, "L"), (DEEP, "I;16")])
def test_a_picture_survives_the_round_trip(array: NDArray, mode: str) -> None:
    back = decode_png(encode_png(array), mode=mode)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_equal_arrays_give_equal_bytes_whatever_their_memory_order() -> None:
    assert encode_png(RGB) == encode_png(RGB.copy()) == encode_png(np.asfortranarray(RGB))


def test_ids_of_palette_pictures_stay_ids() -> None:
    image = Image.fromarray(GREY)
    image.putpalette([i for c in range(256) for i in (c, 255 - c, 7)])
    assert image.mode == "P"
    np.testing.assert_array_equal(decode_png(saved(image), mode="P"), GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1", "L"])
def test_a_picture_of_another_mode_is_refused(mode: str) -> None:
    with pytest.raises(SisError, match="expected RGB"):
        decode_png(saved(Image.fromarray(RGB).convert(mode)), where="x.png", mode="RGB")


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_even_under_a_png_name(kind: str) -> None:
    with pytest.raises(SisError, match=r"invalid PNG.*x\.png"):
        decode_png(saved(Image.fromarray(RGB), kind), where="x.png")


def test_a_picture_cut_anywhere_is_refused() -> None:
    data = encode_png(RGB)
    for length in range(len(data)):
        with pytest.raises(SisError):
            decode_png(data[:length])


def test_a_cut_picture_is_called_truncated() -> None:
    with pytest.raises(SisError, match="truncated"):
        decode_png(encode_png(RGB)[:-30])


def test_a_flipped_bit_never_gives_other_pixels() -> None:
    data = encode_png(RGB)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 0x10
        try:
            found = decode_png(bytes(bad))
        except SisError:
            continue
        np.testing.assert_array_equal(found, RGB, err_msg=f"byte {position}")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, *chunks: bytes) -> bytes:
    """A PNG of these chunks, every checksum right."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def header(width: int, height: int, bits: int, colour: int) -> bytes:
    return struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (8_001, 8_000), (2**31 - 1, 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    bomb = png(header(width, height, 8, 2), chunk(b"IDAT", zlib.compress(b"\0" * 100)))
    with pytest.raises(SisError, match=f"picture of {width}x{height} is over 64 MP"):
        decode_png(bomb)


def test_the_largest_picture_that_is_allowed_fails_for_its_pixels_only() -> None:
    with pytest.raises(SisError, match="damaged PNG: broken data stream"):
        decode_png(png(header(8_000, 8_000, 8, 0), chunk(b"IDAT", b"no pixels")))


@pytest.mark.parametrize(
    ("bits", "colour", "row"), [(2, 0, b"\0\xe4"), (4, 0, b"\0\x01\x23"), (16, 2, b"\0" + b"\x01\x02" * 12)]
)
def test_values_that_pillow_would_rescale_are_refused(bits: int, colour: int, row: bytes) -> None:
    """Grey of 2 or 4 bits would be stretched to 0..255, colour of 16 bits cut to 8, without a word."""
    data = png(header(4, 1, bits, colour), chunk(b"IDAT", zlib.compress(row)))
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode in ("L", "RGB") and np.asarray(picture).max() in (255, 51, 1)
    with pytest.raises(SisError, match=f"{bits} bits a channel"):
        decode_png(data)


def test_an_animated_picture_is_refused() -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(SisError, match="animated PNG"):
        decode_png(buffer.getvalue())


def test_a_file_without_bytes_and_one_of_another_format_are_told_apart() -> None:
    for data, words in [(b"", "empty file"), (b"GIF89a", "6 bytes of another format")]:
        with pytest.raises(SisError, match=f"invalid PNG: {words}"):
            decode_png(data)
    with pytest.raises(SisError, match="invalid PNG: the file is a JPEG"):
        decode_png(saved(Image.fromarray(RGB), "JPEG"))


def test_pictures_are_decoded_by_many_threads_at_a_time() -> None:
    """No state of the process, such as the filters of warnings, is changed in between."""
    before, data = list(warnings.filters), [encode_png(RGB + np.uint8(i)) for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(decode_png, data)):
            np.testing.assert_array_equal(found, RGB + np.uint8(i))
    assert warnings.filters == before


@pytest.mark.parametrize(
    "array",
    [RGB.astype(np.float32), RGB.astype(np.int64), RGB[None], RGB[0, 0], np.stack([DEEP] * 3, -1), RGB[..., :2]],
    ids=["float", "int64", "4 axes", "1 axis", "16-bit colour", "2 channels"],
)
def test_arrays_that_are_no_pictures_are_refused(array: NDArray) -> None:
    with pytest.raises(SisError, match="cannot store"):
        encode_png(array)


def test_the_pixel_hash_depends_on_pixels_shape_and_type_only() -> None:
    flat = np.zeros((2, 6), np.uint8)
    hashes = {pixel_sha256(a) for a in (flat, flat.reshape(3, 4), flat.astype(np.uint16), flat + np.uint8(1))}
    assert len(hashes) == 4
    assert pixel_sha256(RGB) == pixel_sha256(np.asfortranarray(RGB)) == pixel_sha256(decode_png(encode_png(RGB)))
