# SPDX-License-Identifier: Apache-2.0
"""Layout of the built-in dataset: nothing on disk, every scene is drawn from the card's seed."""

from __future__ import annotations

from pathlib import Path

from sis.config.cards import DatasetCard
from sis.data.images import pixel_sha256
from sis.data.layouts import Entry, checked_options
from sis.data.pair import Origin, Pair
from sis.data.scenes import make_scene, scene_id, style_reference

OPTIONS = {"seed": int}


def entries(card: DatasetCard, split: str, root: Path) -> list[Entry]:
    """The scenes of a split, sorted by id."""
    checked_options(card, OPTIONS)
    return [Entry(scene_id(split, index), split) for index in range(card.splits[split].count)]


def read(card: DatasetCard, entry: Entry) -> Pair:
    """Draw one pair."""
    seed, index = int(card.options.get("seed", 0)), int(entry.image_id.rsplit("-", 1)[1])
    size = (card.size[0], card.size[1])
    scene = make_scene(seed, entry.split, index, size)
    reference = style_reference(seed, entry.split, index, card.splits["train"].count)
    origin = Origin(size[1], size[0], "RGB", pixel_sha256(scene.image))
    return Pair(entry.image_id, scene.image, scene.label, scene.instance, reference, origin)
