# SPDX-License-Identifier: Apache-2.0
"""Draws a grid of pictures with headings and row names as one PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sis.data.images import encode_png

Picture = NDArray[np.uint8]

#: Small pictures are enlarged by the smallest whole factor that makes their shorter side this long (pixels).
READABLE = 128

_GAP, _MARGIN, _LINE, _NAMES = 6, 20, 17, 132
_INK, _MUTED, _PAPER = (28, 30, 33), (110, 114, 120), (255, 255, 255)


def draw_sheet(
    title: str, caption: str, heads: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Picture]]
) -> bytes:
    """`sheet` as a PNG."""
    return encode_png(sheet(title, caption, heads, names, rows))


def sheet(
    title: str, caption: str, heads: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[Picture]]
) -> Picture:
    """Draw `rows` of uint8 `(h, w, 3)` pictures as one picture with column heads and row names.

    All pictures share the size of the first one, enlarged by a whole factor without smoothing when it is small.
    """
    height, width = rows[0][0].shape[:2]
    factor = max(1, math.ceil(READABLE / min(height, width)))
    cell_w, cell_h = width * factor, height * factor
    font, strong = ImageFont.load_default(size=13), ImageFont.load_default(size=18)
    wrapped = [_wrap(head, font, cell_w, lines=3) for head in heads]
    total_w = 2 * _MARGIN + _NAMES + len(heads) * (cell_w + _GAP)
    notes = _wrap(caption, font, total_w - 2 * _MARGIN, lines=6)
    top = _MARGIN + 28 + _LINE * len(notes) + 10 + _LINE * max(map(len, wrapped)) + 4
    drawn = Image.new("RGB", (total_w, top + len(rows) * (cell_h + _GAP) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(drawn)
    draw.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=strong)
    _lines(draw, (_MARGIN, _MARGIN + 24), notes, font, _MUTED)
    for column, lines in enumerate(wrapped):
        x = _MARGIN + _NAMES + column * (cell_w + _GAP)
        _lines(draw, (x, top - 4 - _LINE * len(lines)), lines, font, _INK)
    for number, (name, pictures) in enumerate(zip(names, rows, strict=True)):
        y = top + number * (cell_h + _GAP)
        _lines(draw, (_MARGIN, y), _wrap(name, font, _NAMES - 2 * _GAP, lines=5), font, _MUTED)
        for column, picture in enumerate(pictures):
            x = _MARGIN + _NAMES + column * (cell_w + _GAP)
            drawn.paste(_fitted(picture, cell_w, cell_h), (x, y))
    return np.asarray(drawn)


def stacked(sheets: Sequence[Picture]) -> Picture:
    """Put sheets below one another; narrower ones get paper on their right."""
    width = max(s.shape[1] for s in sheets)
    paper = [np.full((len(s), width - s.shape[1], 3), _PAPER, np.uint8) for s in sheets]
    return np.concatenate([np.concatenate(pair, axis=1) for pair in zip(sheets, paper, strict=True)])


def _fitted(picture: Picture, width: int, height: int) -> Image.Image:
    image = Image.fromarray(picture)
    whole = width % image.width == 0 and width // image.width == height / image.height
    return image.resize((width, height), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> list[str]:
    """Break `text` to at most `lines` lines of about `width` pixels, ending in an ellipsis if it is cut."""
    characters = max(4, int(width / font.getlength("n")))
    text = " ".join(text.split()) or " "
    return textwrap.wrap(text, characters, max_lines=lines, placeholder="...") or [text[:characters]]


def _lines(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * _LINE), line, fill=colour, font=font)
