# SPDX-License-Identifier: Apache-2.0
"""Raw pictures with known pixels, ways to write them, and the refusal that names their file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sis.errors import SisError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 150, (6, 9), dtype=np.uint8)
DEEP = RNG.integers(0, 60_000, (6, 9), dtype=np.uint16)
#: Flat blocks of 16 pixels, so that JPEG keeps each block's colour.
COLOURS = np.array([[[250, 10, 10], [10, 240, 30]], [[20, 30, 230], [128, 128, 128]], [[0, 0, 0], [255, 255, 255]]])
BLOCKS = np.kron(COLOURS, np.ones((16, 16, 1))).astype(np.uint8)


def picture_path(tmp_path: Path) -> Path:
    """Where a test writes its picture; each test file makes it its fixture `path`."""
    return tmp_path / "picture.file"


def save(path: Path, image: Image.Image, kind: str = "PNG", **options: Any) -> Path:
    image.save(path, kind, **options)
    return path


def turned(orientation: int, **more: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
