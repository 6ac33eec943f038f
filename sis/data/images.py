# SPDX-License-Identifier: Apache-2.0
"""Lossless pictures in and out of bytes, with every doubtful file refused."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sis.data.picture_header import Header, checked_header
from sis.errors import SisError

_MODES = {"RGB": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16}
#: What Pillow's decoders raise on bytes that they cannot read.
UNREADABLE = (
    OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, struct.error, zlib.error,
)  # fmt: skip


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

    Raises SisError when the bytes are no PNG, truncated, damaged, too large, of another mode than `mode`, or stored
    with other bits than the array has (Pillow would rescale the values).
    """
    header = checked_header(data, ["PNG"], where)
    with decoding(header, where), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        found = picture.mode
        if found not in _MODES or (mode is not None and found != mode):
            raise SisError(f"PNG of mode {found}, expected {mode or ' or '.join(_MODES)}", where=where)
        refuse_rescaled(header, found, where)
        return np.asarray(picture, dtype=_MODES[found])


@contextmanager
def decoding(header: Header, where: object) -> Iterator[None]:
    """Turn whatever Pillow raises in the block, its warnings included, into a SisError."""
    try:
        yield
    except (*UNREADABLE, UserWarning) as error:
        strange = isinstance(error, UnidentifiedImageError)
        reason = "unreadable header" if strange else " ".join(str(error).split())[:120] or type(error).__name__
        raise SisError(f"damaged {header.kind}: {reason}", where=where, fix="fetch or write it again") from error


def refuse_rescaled(header: Header, mode: str, where: object) -> None:
    """Raise SisError for a grey or colour picture of other than 8 bits, whose values Pillow changes to fill 8 bits."""
    if mode in ("L", "RGB") and header.bits != 8:
        fault = f"{header.kind} of {header.bits} bits a channel (mode {mode}); its values would be rescaled"
        raise SisError(fault, where=where, fix="write it with 8 bits")


def pixel_sha256(array: NDArray) -> str:
    """The sha256 of shape, type and pixels: independent of how the picture was compressed."""
    head = f"{array.dtype.name}:{'x'.join(map(str, array.shape))}:".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
