# SPDX-License-Identifier: Apache-2.0
"""The built-in dataset `scenes`: procedural street scenes, the same bits from the same (seed, split, index).

A scene is planned in `scenes_layout` and painted in `scenes_paint`. Plan and textures use separate random
streams, so one scene keeps its plan at every picture size of the same aspect.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from sis.data.scenes_layout import STYLE_TABLE, Dice, draw_layout
from sis.data.scenes_paint import grade, paint
from sis.errors import SisError

STYLES: int = len(STYLE_TABLE)
STYLE_NAMES: tuple[str, ...] = tuple(style.name for style in STYLE_TABLE)
LEAST_SIDE = 32
MOST_SCENES = 100_000  # five digits in an id, so that ids sort by index


@dataclass(frozen=True)
class Scene:
    """One scene: image uint8 (h, w, 3), label uint8 (h, w), instance uint16 (h, w), style 0..STYLES-1.

    Labels follow config/labels/scenes.yaml with 255 as void. Instances are 0 for stuff and void, and
    class id * 1000 + running number for cars, persons, poles and signs, as in Cityscapes.
    """

    image: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    style: int


def make_scene(seed: int, split: str, index: int, size: tuple[int, int] = (64, 64)) -> Scene:
    """Make scene `index` of a split at `size` (h, w); a pure function of its arguments.

    Raises SisError when a side is under 32 pixels or the index is out of 0..99999.
    """
    height, width = size
    if min(height, width) < LEAST_SIDE:
        what = f"scenes need at least {LEAST_SIDE} pixels a side"
        raise SisError(what, where=f"size {height}x{width}", fix="choose a larger size")
    _check_index(index)
    style = _style(seed, split, index)
    layout = draw_layout(_dice(seed, split, index, "layout"), width / height)
    canvas = paint(layout, STYLE_TABLE[style], _dice(seed, split, index, "paint"), height, width)
    image = grade(canvas, layout.ground.horizon)
    return Scene(image=image, label=canvas.label, instance=canvas.instance, style=style)


def scene_id(split: str, index: int) -> str:
    """Name a scene, e.g. "val-00012"; within a split, names sort as indices do."""
    _check_index(index)
    return f"{split}-{index:05d}"


def style_reference(seed: int, split: str, index: int, train_count: int) -> str:
    """Name a train scene of the same style as this scene, never itself.

    The search starts at a keyed random train index and walks on, so references spread over the split.
    Raises SisError when none of the `train_count` train scenes serves.
    """
    _check_index(index)
    wanted = _style(seed, split, index)
    start = _key(seed, split, index, "reference")
    for step in range(train_count):
        other = (start + step) % train_count
        if (split, index) != ("train", other) and _style(seed, "train", other) == wanted:
            return scene_id("train", other)
    what = f"no other train scene has the style '{STYLE_NAMES[wanted]}'"
    raise SisError(what, where=scene_id(split, index), fix=f"ask for more than {train_count} train scenes")


def _key(seed: int, split: str, index: int, purpose: str) -> int:
    text = json.dumps([int(seed), split, int(index), purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def _dice(seed: int, split: str, index: int, purpose: str) -> Dice:
    sequence = np.random.SeedSequence(_key(seed, split, index, purpose))
    return Dice(np.random.Generator(np.random.PCG64(sequence)))


def _style(seed: int, split: str, index: int) -> int:
    return _key(seed, split, index, "style") % STYLES


def _check_index(index: int) -> None:
    if not 0 <= index < MOST_SCENES:
        raise SisError("scene index out of range", where=index, fix=f"use 0 to {MOST_SCENES - 1}")
