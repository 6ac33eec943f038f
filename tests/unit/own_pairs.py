# SPDX-License-Identifier: Apache-2.0
"""Small datasets of somebody's own: photographs and label maps in folders, with a card that holds its label table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sis.config.cards import DatasetCard

#: (height, width) of raw pictures, by turns.
SIZES = [(20, 24), (32, 24), (24, 40)]
VOID = 255
COUNTS = {"train": 8, "val": 4}


def card(**changes: Any) -> DatasetCard:
    """The card of what `write` writes, with some of its keys changed."""
    keys: dict[str, Any] = {
        "name": "harbour",
        "title": "Harbour",
        "layout": "folder",
        "labels": {
            "name": "harbour",
            "void": VOID,
            "classes": [
                {"id": 0, "name": "water", "colour": [70, 130, 180]},
                {"id": 1, "name": "quay", "colour": [128, 64, 128]},
                {"id": 2, "name": "crane | tower", "colour": [220, 20, 60], "dead": True},
                {"id": 3, "name": "gull", "colour": [220, 220, 0]},
                {"id": 4, "name": "bow", "colour": [0, 0, 142], "ignored": True},
            ],
        },
        "size": [16, 16],
        "prepare": {"policy": "sdm"},
        "splits": {name: {"count": count} for name, count in COUNTS.items()},
        "licence": "our own",
        "source": "drawn by a test",
    }
    return DatasetCard.model_validate(keys | changes)


def image_id(split: str, index: int) -> str:
    """The id of a pair."""
    return f"{split}-{index:03d}"


def write(root: Path, counts: dict[str, int] | None = None, instances: bool = False) -> Path:
    """Write the splits below `root`: classes 0 and 1 with some void, every fourth photograph grey; returns `root`."""
    for split, count in (counts or COUNTS).items():
        for index in range(count):
            draw = np.random.default_rng([index, len(split)])
            height, width = SIZES[index % len(SIZES)]
            photograph = draw.integers(0, 256, (height, width, 3), np.uint8)
            label = np.zeros((height, width), np.uint8)
            label[height // 2 :] = 1
            label[:2, :2] = VOID
            name = image_id(split, index)
            picture = Image.fromarray(photograph)
            save(picture.convert("L") if index % 4 == 3 else picture, root / split / "images" / f"{name}.png")
            save(Image.fromarray(label), root / split / "labels" / f"{name}.png")
            if instances:
                ids = np.where(label == 1, 40_000 + index, 0).astype(np.uint16)
                save(Image.fromarray(ids), root / split / "instances" / f"{name}.png")
    return root


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def file(root: Path, split: str, kind: str, index: int) -> Path:
    """A raw file; `kind` is images, labels or instances."""
    return root / split / kind / f"{image_id(split, index)}.png"


def relabel(path: Path, value: int) -> None:
    """Give the last pixel of a label map another value."""
    label = np.array(Image.open(path))
    label[-1, -1] = value
    Image.fromarray(label).save(path)
