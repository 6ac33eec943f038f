# SPDX-License-Identifier: Apache-2.0
"""One raw picture of somebody's dataset: read exactly as it was meant, or refused with its name."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sis.data.images import UNREADABLE, decode_png, decoding, refuse_rescaled
from sis.data.picture_header import Header, Kind, checked_header, refuse_missing_rows
from sis.errors import SisError

_ORIENTATION = 0x0112
#: EXIF 2.3, tag Orientation: what turns the stored picture into the one that was seen.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHOWN = {"P": "a palette picture", "RGB": "a colour picture", "RGBA": "a colour picture", "1": "a bitmap"}


def read_photograph(path: Path, exif: Literal["refuse", "ignore", "apply"]) -> tuple[NDArray[np.uint8], str]:
    """Read a JPEG or PNG as uint8 RGB `(h, w, 3)`; also returns Pillow's mode of the file: RGB, L or CMYK.

    Grey is replicated, CMYK converted by Pillow; colour profiles are ignored, as the papers' loaders do.

    Args:
        exif: what to do with a picture whose EXIF orientation is not 1.

    Raises SisError for other formats and modes, for truncated, damaged, unreadable files and those over 64 MP.
    """
    data, header = _content(path, ["JPEG", "PNG"])
    with decoding(header, path), _certain_metadata(exif, path):
        picture = Image.open(io.BytesIO(data), formats=[header.kind])
        mode = picture.mode
        if mode not in ("RGB", "L", "CMYK"):
            raise SisError(f"photograph of mode {mode}", where=path, fix="write it as RGB or grey of 8 bits")
        refuse_rescaled(header, mode, path)
        picture.load()
        turn = None if exif == "ignore" else _turn(picture, exif, path)
        shown = picture.convert("RGB")
        return np.asarray(shown if turn is None else shown.transpose(turn)), mode


def read_label(path: Path, palette: Literal["refuse", "indices"]) -> NDArray:
    """Read the values of a label map as they are, uint8 or uint16 `(h, w)`, from a grey PNG of 8 or 16 bits.

    Args:
        palette: `indices` reads the indices of a palette PNG, unless it may be a grey picture that a tool stored so.

    Raises SisError for other formats and modes, for truncated, damaged, unreadable files and those over 64 MP.
    """
    data, header = _content(path, ["PNG"])
    mode, colours = _mode_and_palette(data, header, path)
    if mode == "P":
        if palette == "refuse":
            raise SisError(
                "label map is a palette picture; read as grey its ids would change",
                where=path,
                fix="write the ids as a grey PNG, or, if its indices are the ids, say `files: {palette: indices}`",
            )
        indices = decode_png(data, where=path, mode="P")
        _refuse_grey_palette(indices, colours, path)
        return indices
    return _grey(data, mode, ("L", "I;16"), "label map", path)


def read_instance(path: Path, bits: int) -> NDArray[np.uint16]:
    """Read an instance map, uint16 `(h, w)`, from a grey PNG of so many bits (8 or 16).

    Raises SisError for another number of bits, other formats and modes, and truncated, damaged or unreadable files.
    """
    data, header = _content(path, ["PNG"])
    mode, _ = _mode_and_palette(data, header, path)
    if bits == 16 and mode == "L":
        raise SisError(
            "instance map of 8 bits, expected 16: ids above 255 were cut off, so different objects share one",
            where=path,
            fix="use the original 16-bit file; if 8 bits are right, say `files: {instance_bits: 8}`",
        )
    if bits == 8 and mode == "I;16":
        fix = "say `files: {instance_bits: 16}` if that is right"
        raise SisError("instance map of 16 bits, expected 8", where=path, fix=fix)
    return _grey(data, mode, ("I;16",) if bits == 16 else ("L",), "instance map", path).astype(np.uint16)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask `(h, w)`, true where a PNG is not black; grey of 1 or 8 bits, or RGB with equal channels.

    Raises SisError for other formats, modes and colours, and for truncated, damaged or unreadable files.
    """
    data, header = _content(path, ["PNG"])
    mode, _ = _mode_and_palette(data, header, path)
    if mode == "1":
        with decoding(header, path), Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture)
    if mode == "RGB":
        values = decode_png(data, where=path, mode="RGB")
        if (values != values[..., :1]).any():
            raise SisError("mask with colours", where=path, fix="write it as a grey PNG, black where the part is not")
        return values[..., 0] > 0
    return _grey(data, mode, ("L",), "mask", path) > 0


@contextmanager
def _certain_metadata(exif: str, path: Path) -> Iterator[None]:
    """Refuse torn metadata, of which Pillow only warns: an orientation in it is lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if exif == "ignore" else "error", UserWarning)
        try:
            yield
        except UserWarning as warning:
            raise _torn_metadata(warning, path) from warning


def _torn_metadata(error: Exception, path: Path) -> SisError:
    fix = "say `files: {exif: ignore}` to take it as it is stored"
    return SisError(f"photograph with torn metadata ({error})", where=path, fix=fix)


def _content(path: Path, kinds: list[Kind]) -> tuple[bytes, Header]:
    """A file's bytes and their header. Raises SisError unless they are a whole picture of one of the formats."""
    try:
        if not path.is_file():
            raise SisError("not a file" if path.exists() else "no such file", where=path)
        data = path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SisError(f"cannot read this file: {reason}", where=path, fix="check its permissions") from error
    header = checked_header(data, kinds, path)
    if header.kind == "PNG":
        refuse_missing_rows(data, path)
    return data, header


def _mode_and_palette(data: bytes, header: Header, path: Path) -> tuple[str, NDArray[np.uint8]]:
    """Pillow's mode of a PNG, and the colours `(n, 3)` of its palette."""
    with decoding(header, path), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        colours = picture.getpalette("RGB") if picture.mode == "P" else None
        return picture.mode, np.reshape(np.array(colours or [], np.uint8), (-1, 3))


def _grey(data: bytes, mode: str, wanted: tuple[str, ...], what: str, path: Path) -> NDArray:
    if mode not in wanted:
        fault = f"{what} of mode {mode}" + (f": {_SHOWN[mode]}, not ids" if mode in _SHOWN else "")
        bits = " or ".join({"L": "8", "I;16": "16"}[m] for m in wanted)
        raise SisError(fault, where=path, fix=f"write it as a grey PNG of {bits} bits")
    return decode_png(data, where=path, mode=mode)


def _refuse_grey_palette(indices: NDArray[np.uint8], colours: NDArray[np.uint8], path: Path) -> None:
    """Raise SisError when neither the indices nor the shown greys are certainly the ids."""
    used = np.unique(indices)
    if used[-1] >= len(colours):
        raise SisError(f"palette of {len(colours)} colours, but index {used[-1]} is used", where=path)
    # A table of class colours may begin with greys; a grey picture stored with a palette holds nothing else.
    grey = (colours == colours[:, :1]).all()
    if grey and (colours[used, 0] != used).any():
        fault = "every colour of this palette is grey and differs from its index: the ids may be either"
        raise SisError(fault, where=path, fix="write the ids as a grey PNG")


def _turn(picture: Image.Image, exif: str, path: Path) -> Image.Transpose | None:
    """How to turn a picture upright. Raises SisError where that is not wanted or not known."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except UNREADABLE as error:
        raise _torn_metadata(error, path) from error
    if orientation == 1:
        return None
    if exif == "refuse":
        raise SisError(
            f"photograph with EXIF orientation {orientation}: it is stored turned",
            where=path,
            fix="if label maps fit the stored picture say `files: {exif: ignore}`, if the upright one, `{exif: apply}`",
        )
    if orientation not in _UPRIGHT:
        fix = "say `files: {exif: ignore}` to take it as it is stored"
        raise SisError(f"photograph with EXIF orientation {orientation!r}, which does not exist", where=path, fix=fix)
    return _UPRIGHT[orientation]
