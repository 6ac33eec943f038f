# SPDX-License-Identifier: Apache-2.0
"""Pictures: lossless, repeatable, and refused when in doubt."""

from __future__ import annotations

import io
import struct
import zlib

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
    for length in range(0, len(data) - 4):  # the last four bytes are the checksum of the empty end chunk
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


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    with pytest.raises(SisError):
        decode_png(bomb)


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
