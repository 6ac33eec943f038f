# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's hints, targets and (bilinearly resized) label maps, as its three data sets return them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runners import Case, Data, Found, Near
from runners.prepared import card_of_one_pair, prepared
from sis.data.hints import coloured, grid_palette, hint, target, voc_palette
from sis.data.labels import LabelSpace
from sis.data.pair import Pair
from sis.data.resize import Size

#: Sums of the same products in another order.
ROUNDING = 1e-6


def hint_encode(case: Case, data: Data) -> Found:
    height, width = case["config"]["resolution"]
    size = (height, width)
    return {**ade20k(data, size), **coco_stuff(data, size), **cityscapes(data, size)}


def ade20k(data: Data, size: Size) -> dict[str, NDArray | Near]:
    space, pair = released("ade20k_512_release", size, photograph=data["ade_image"], label=data["ade_label"])
    palette = grid_palette(space.width)
    return {
        "ade_palette": palette,
        "ade_jpg": Near(target(data["ade_image"], size), ROUNDING),
        "ade_hint": Near(hint(coloured(source_values(space, pair), palette), size), ROUNDING),
        "ade_label_resized": space.to_file(pair.label),
    }


def coco_stuff(data: Data, size: Size) -> dict[str, NDArray | Near]:
    space, pair = released("coco_stuff_384_release", size, label=data["coco_label"])
    palette = voc_palette(space.count, [c.id for c in space.classes if c.dead])
    return {
        "coco_palette": palette,
        "coco_hint": Near(hint(coloured(source_values(space, pair), palette), size), ROUNDING),
        "coco_label_resized": space.to_file(pair.label),
    }


def cityscapes(data: Data, size: Size) -> dict[str, NDArray | Near]:
    _, pair = released("cityscapes_512_release", size, photograph=data["ade_image"], label=data["cs_trainid"])
    bytewise = target(data["ade_image"], size, whole_levels=True)
    np.testing.assert_array_equal(bytewise, pair.image / np.float32(127.5) - 1)
    return {
        "cs_jpg": Near(bytewise, ROUNDING),
        "cs_hint": Near(hint(data["cs_color"], size, whole_levels=True), ROUNDING),
        # Train ids are what the files hold; ids that the filter invented have no file value.
        "cs_label_resized": pair.label,
    }


def released(name: str, size: Size, **raw: NDArray[np.uint8]) -> tuple[LabelSpace, Pair]:
    """One pair as `prepare` stores it by the card of the released code, and the card's label table."""
    preparer, pair = prepared(card_of_one_pair(name, size, "val", raw, edges=False), raw)
    return preparer.space, pair


def source_values(space: LabelSpace, pair: Pair) -> NDArray[np.uint8]:
    """The values of the label file at its own size."""
    return space.to_file(pair.label if pair.source_label is None else pair.source_label)
