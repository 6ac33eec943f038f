# SPDX-License-Identifier: Apache-2.0
"""Layout of the built-in dataset: nothing on disk, every scene is drawn from the card's seed."""

from __future__ import annotations

from pathlib import Path

from sis.config.cards import DatasetCard
from sis.data.pairs import Pair
from sis.data.scenes import make_scene, scene_id, style_reference
from sis.errors import SisError, did_you_mean

OPTIONS = {"seed": int}


def ids(card: DatasetCard, split: str, root: Path) -> list[str]:
    """The image ids of a split, sorted."""
    for name, value in card.options.items():
        if name not in OPTIONS:
            raise SisError(
                f"unknown option {name!r} of layout scenes", where=card.name, fix=did_you_mean(name, OPTIONS)
            )
        if type(value) is not OPTIONS[name]:
            raise SisError(f"option {name} must be of type {OPTIONS[name].__name__}, found {value!r}", where=card.name)
    return [scene_id(split, index) for index in range(card.splits[split].count)]


def load(card: DatasetCard, split: str, root: Path, image_id: str) -> Pair:
    """Draw one pair."""
    seed, index = int(card.options.get("seed", 0)), int(image_id.rsplit("-", 1)[1])
    scene = make_scene(seed, split, index, (card.size[0], card.size[1]))
    reference = style_reference(seed, split, index, card.splits["train"].count)
    return Pair(image_id, scene.image, scene.label, scene.instance, reference)
