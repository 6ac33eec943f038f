# SPDX-License-Identifier: Apache-2.0
"""What the bytes of a PNG or JPEG promise, and whether they are all there; checked before anything is decoded.

Pillow alone shows a PNG whose end is missing, or whose rows are fewer than it says, and a JPEG whose last rows are
missing, without a word.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sis.errors import SisError

#: Larger pictures are refused before decoding (decompression bombs).
MAX_PIXELS = 64_000_000

Kind = Literal["PNG", "JPEG"]

_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_JPEG_BEGIN = b"\xff\xd8\xff"
#: A marker of a JPEG; inside a scan FF is data when 00 follows, D0..D7 are restarts, and a second FF is filling.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_END, _STANDALONE = 0xD9, {0x01, 0xD8}
#: Channels by a PNG's colour type; first column, first row and steps of the passes of an interlaced one.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_PIECE = 1 << 20
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Header:
    """Format, size in pixels and bits of each stored channel."""

    kind: Kind
    width: int
    height: int
    bits: int


class _TornError(Exception):
    """What is wrong with a file's structure."""


def checked_header(data: bytes, kinds: Sequence[Kind], where: object = None) -> Header:
    """The header of a picture whose structure is whole: every checksum of a PNG, the end marker of a JPEG.

    Raises SisError when the bytes are of another format, cut, damaged, animated, or promise over 64 MP.
    """
    wanted = " or ".join(kinds)
    kind = _kind(data)
    if kind not in kinds:
        found = f"the file is a {kind}" if kind else f"{len(data)} bytes of another format" if data else "empty file"
        raise SisError(f"invalid {wanted}: {found}", where=where, fix=f"write it as {wanted}")
    try:
        header = _png(data) if kind == "PNG" else _jpeg(data)
    except (_TornError, struct.error) as error:
        reason = str(error) if isinstance(error, _TornError) else "truncated"
        raise SisError(f"{reason} {kind} ({len(data)} bytes)", where=where, fix="fetch or write it again") from None
    if not 0 < header.width * header.height <= MAX_PIXELS:
        fault = "is over 64 MP" if header.width * header.height else "has no pixels"
        raise SisError(f"picture of {header.width}x{header.height} {fault}", where=where)
    return header


def refuse_missing_rows(data: bytes, where: object = None) -> None:
    """Raise SisError for a PNG (with a checked header) whose chunks are sound but hold fewer rows than it says."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(_PNG_BEGIN) + 8)
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    needed = sum(h * (1 + -(-w * bits * _CHANNELS.get(colour, 1) // 8)) for w, h in sizes if w > 0 and h > 0)
    found, stream = 0, zlib.decompressobj()
    try:
        for name, begin, end in _png_chunks(data):
            piece = data[begin:end] if name == b"IDAT" else b""
            while piece and found < needed:
                found += len(stream.decompress(piece, _PIECE))
                piece = stream.unconsumed_tail
    except zlib.error as error:
        raise SisError(f"damaged PNG: {error}", where=where, fix="fetch or write it again") from error
    if found < needed:
        fault = f"truncated PNG: {found:,} of {needed:,} bytes of pixels"
        raise SisError(fault, where=where, fix="fetch or write it again")


def _kind(data: bytes) -> Kind | None:
    return "PNG" if data.startswith(_PNG_BEGIN) else "JPEG" if data.startswith(_JPEG_BEGIN) else None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Names of the chunks up to IEND (PNG specification section 5), and where their data begin and end."""
    position, name = len(_PNG_BEGIN), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        yield name, position - 4 - length, position - 4


def _png(data: bytes) -> Header:
    view = memoryview(data)
    for name, begin, end in _png_chunks(data):
        if end + 4 > len(data):
            raise _TornError("truncated")
        if zlib.crc32(view[begin - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _TornError("damaged (checksum of a chunk)")
        if (begin == len(_PNG_BEGIN) + 8) != (name == b"IHDR") or (name == b"IHDR" and end - begin != 13):
            raise _TornError("damaged (order of chunks)")
        if name == b"acTL":
            raise _TornError("animated")
    width, height, bits = struct.unpack_from(">IIB", data, len(_PNG_BEGIN) + 8)
    return Header("PNG", width, height, bits)


def _jpeg(data: bytes) -> Header:
    """Walk the markers of a JPEG (ITU T.81 annex B) up to the end of its first image."""
    position, header = 2, None
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == _END:
            if header is None:
                raise _TornError("damaged (no frame in this)")
            return header
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _FRAMES:
            bits, height, width = struct.unpack_from(">BHH", data, position + 2)
            if header is None or header.width * header.height < width * height:
                header = Header("JPEG", width, height, bits)
        position += length
    raise _TornError("truncated")
