# SPDX-License-Identifier: Apache-2.0
"""Draws some prepared pairs of each split: photograph, coloured label map, edge map, style reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sis.data.contact_sheet import READABLE, Picture, sheet, stacked
from sis.data.edges import edge_map
from sis.data.images import encode_png
from sis.data.pair import Pair
from sis.data.pairs import PairSet
from sis.data.split_facts import spread

#: Pairs of each split on the sheet.
PAIRS_SHOWN = 8
#: The longer side of a picture in pixels, as far as the shorter one stays readable.
_LONGER = 192


def draw_pairs(title: str, splits: Sequence[PairSet]) -> bytes:
    """Draw pairs that are evenly spaced over the sorted ids of each split, at the dataset's size, as one PNG.

    Style references are photographs of the split `train`, which must be among `splits`.
    """
    train = next(pairs for pairs in splits if pairs.split == "train")
    return encode_png(stacked([_sheet(title, pairs, train) for pairs in splits]))


def _sheet(title: str, pairs: PairSet, train: PairSet) -> Picture:
    shown = [pairs.get(i) for i in spread(len(pairs), PAIRS_SHOWN)]
    palette = pairs.labels.palette()
    rows: dict[str, list[Picture]] = {}
    for pair in shown:
        for name, picture in _pictures(pair, palette, pairs.edges).items():
            rows.setdefault(name, []).append(picture)
    if shown and all(pair.reference_id for pair in shown):
        styles = (train.by_id(pair.reference_id).image for pair in shown)
        rows["style reference"] = [_shrunk(photograph, Image.Resampling.LANCZOS) for photograph in styles]
    height, width = pairs.size
    caption = f"{len(shown)} of {len(pairs):,} pairs, evenly spaced over the sorted ids, {width}x{height}"
    return sheet(f"{title}: {pairs.split}", caption, [p.image_id for p in shown], list(rows), list(rows.values()))


def _pictures(pair: Pair, palette: NDArray[np.uint8], edges: bool) -> dict[str, Picture]:
    """The pictures of a pair by their row's name, none larger than a sheet needs."""
    pictures: dict[str, Picture] = {}
    if pair.photograph is not None:
        pictures["photograph"] = _shrunk(pair.photograph, Image.Resampling.LANCZOS)
    pictures["label map"] = _shrunk(palette[pair.label], Image.Resampling.NEAREST)
    if edges and pair.instance is not None:
        lines = np.where(edge_map(pair.instance), np.uint8(255), np.uint8(0))
        # The box filter keeps some of every line; any of it shows as white.
        drawn = np.where(_shrunk(lines, Image.Resampling.BOX) > 0, np.uint8(255), np.uint8(0))
        pictures["edge map"] = np.repeat(drawn[..., None], 3, axis=2)
    return pictures


def _shrunk(picture: Picture, filter_: Image.Resampling) -> Picture:
    height, width = picture.shape[:2]
    scale = max(_LONGER / max(height, width), READABLE / min(height, width))
    if scale >= 1:
        return picture
    return np.asarray(Image.fromarray(picture).resize((round(width * scale), round(height * scale)), filter_))
