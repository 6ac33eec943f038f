# SPDX-License-Identifier: Apache-2.0
"""Lossless pictures in and out of bytes, with every doubtful file refused."""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sis.errors import SisError

#: Larger pictures are refused before decoding (decompression bombs).
MAX_PIXELS = 64_000_000

_MODES = {"RGB": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16}


def encode_png(array: NDArray) -> bytes:
    """Encode uint8 `(h, w, 3)`, uint8 `(h, w)` or uint16 `(h, w)` as PNG; equal arrays give equal bytes."""
    colour = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    if not colour and (array.dtype not in (np.uint8, np.uint16) or array.ndim != 2):
        raise SisError(f"cannot store a picture of type {array.dtype} and shape {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes, *, where: object = None, mode: str | None = None) -> NDArray:
    """Decode a PNG to uint8 `(h, w, 3)`, uint8 `(h, w)` or uint16 `(h, w)`; ids of palette pictures stay ids.

    Raises SisError when the bytes are no PNG, truncated, damaged, too large, or of another mode than `mode`.
    """
    try:
        if _cut(data):
            raise OSError("the file ends too early")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as checked:
                if checked.width * checked.height > MAX_PIXELS:
                    raise SisError(f"picture of {checked.width}x{checked.height} is over 64 MP", where=where)
                checked.verify()  # reads every chunk's checksum; a cut file decodes silently otherwise
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                found = picture.mode
                if found not in _MODES or (mode is not None and found != mode):
                    raise SisError(f"PNG of mode {found}, expected {mode or ' or '.join(_MODES)}", where=where)
                return np.asarray(picture, dtype=_MODES[found])
    except SisError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        reason = "truncated" if _cut(data) else "damaged"
        raise SisError(f"{reason} or invalid PNG ({len(data)} bytes)", where=where, fix="write it again") from error


def pixel_sha256(array: NDArray) -> str:
    """The sha256 of shape, type and pixels: independent of how the picture was compressed."""
    head = f"{array.dtype.name}:{'x'.join(map(str, array.shape))}:".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _cut(data: bytes) -> bool:
    """Whether a PNG ends before its last chunk does."""
    return data.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" not in data
