# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's colour-coded hints: what a ControlNet sees of a label map, and the photographs it is trained towards.

Palettes and arithmetic follow the released code (AIR-DISCOVER/SCP-Diff-Toolkit @859f671): ADE20K has a colour grid,
COCO-Stuff the colours of Pascal VOC, Cityscapes its own colours. ADE20K and COCO-Stuff are resized in float32,
Cityscapes in bytes: rounded to whole levels after the filter.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from sis.data.labels import LabelSpace
from sis.data.resize import Size, bilinear, rounded
from sis.errors import SisError

if TYPE_CHECKING:
    from torch import Tensor

_GRID, _STEP = 7, 30

#: ADE20K's colour grid, Pascal VOC's colours (COCO-Stuff), or the label table's own (Cityscapes).
Palette = Literal["grid", "voc", "colours"]


def grid_palette(count: int) -> NDArray[np.uint8]:
    """Colours of the file values 0..count-1 on a 7x7x7 grid in steps of 30 (ADE20K, 151), uint8 `(count, 3)`.

    Raises SisError above the 256 values of a byte.
    """
    values = _values(count)
    places = (values // _GRID**2, values // _GRID % _GRID, values % _GRID)
    return np.stack([_STEP * place for place in places], axis=1).astype(np.uint8)


def voc_palette(count: int, dead: Collection[int]) -> NDArray[np.uint8]:
    """Pascal VOC's colours of the values 0..count-1, the first after its background; dead ids black, `(count, 3)`.

    Each channel gathers every third bit of value + 1, the lowest bit highest. Raises SisError above 256 values.
    """
    number = _values(count)[:, None] + 1
    palette = np.zeros((count, 3), np.uint8)
    for bit in range(3):
        palette |= ((number >> (3 * bit + np.arange(3)) & 1) << (7 - bit)).astype(np.uint8)
    palette[list(dead)] = 0
    return palette


def channel_palette(space: LabelSpace, name: Palette) -> NDArray[np.uint8]:
    """Colours by one-hot channel, uint8 `(width, 3)`; the void channel is black.

    The first two palettes colour the values of label files, as the released code does, the third one colours classes.
    """
    ids = np.arange(space.count, dtype=np.uint8)
    if name == "colours":
        colours = space.palette()[ids]
    else:
        values = space.to_file(ids)
        count = int(values.max()) + 1
        dead = [int(values[c.id]) for c in space.classes if c.dead]
        colours = (grid_palette(count) if name == "grid" else voc_palette(count, dead))[values]
    return np.concatenate([colours, np.zeros((space.width - space.count, 3), np.uint8)])


def hints_of(labels: Tensor, palette: NDArray[np.uint8]) -> Tensor:
    """Hints float32 `(b, 3, h, w)` in [0, 1] of label maps `(b, h, w)` that hold channels of `channel_palette`."""
    import torch

    colours = torch.from_numpy(palette / np.float32(255)).to(labels.device)
    return colours[labels].permute(0, 3, 1, 2).contiguous()


def coloured(values: NDArray[np.uint8], palette: NDArray[np.uint8], black: int | None = None) -> NDArray[np.uint8]:
    """The picture `(h, w, 3)` of a label map `(h, w)`; `black` is a value that may lie outside the palette.

    Raises SisError for other values outside the palette.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    outside = sorted({int(v) for v in np.unique(values) if v >= len(palette)} - {black})
    if outside:
        raise SisError(f"label values without a colour: {outside}", fix=f"the palette has {len(palette)} colours")
    return table[values]


def hint(colours: NDArray[np.uint8], size: Size, whole_levels: bool = False) -> NDArray[np.float32]:
    """Resize a coloured label map `(h, w, 3)` to float32 `(*size, 3)` in [0, 1]; `whole_levels`: in bytes."""
    if whole_levels:
        return _levels(colours, size) / np.float32(255)
    return bilinear(colours / np.float32(255), size)


def target(photograph: NDArray[np.uint8], size: Size, whole_levels: bool = False) -> NDArray[np.float32]:
    """Resize a photograph `(h, w, 3)` to float32 `(*size, 3)` in [-1, 1]; `whole_levels`: in bytes."""
    if whole_levels:
        return _levels(photograph, size) / np.float32(127.5) - 1
    return bilinear(photograph / np.float32(127.5) - 1, size)


def _levels(picture: NDArray[np.uint8], size: Size) -> NDArray[np.float32]:
    return rounded(bilinear(picture, size)).astype(np.float32)


def _values(count: int) -> NDArray[np.int64]:
    if not 1 <= count <= 256:
        raise SisError(f"a palette has 1 to 256 colours, found {count}")
    return np.arange(count)
