# SPDX-License-Identifier: Apache-2.0
"""COCO-Stuff 164k in miniature: twelve-digit names, label values 0..181 with 255 unlabelled, 8-bit instance maps.

Layout and values: nightrome/cocostuff (README, labels.txt minus 1); instances as NVlabs/SPADE's script makes them: the
label map with the running numbers of things painted over it, in 8 bits, so that a thing can equal a class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniatures.scenery import KINDS, VOID, Mode, Sample, Size, grey, save_jpeg, save_png, street, wild_size

SIZE = (64, 64)
#: None of the eleven dead ids; wood (181) is the last id.
CLASSES = {
    "sky": 156, "building": 95, "tree": 168, "grass": 123, "road": 148, "sidewalk": 139,
    "car": 2, "person": 0, "pole": 181, "sign": 12,
}  # fmt: skip
THINGS = ("car", "person", "sign")
#: The training picture whose label map has a palette, and the one whose photograph is grey.
WITH_PALETTE, GREY = 1, 3
PALETTE = [(index * step) % 256 for index in range(256) for step in (67, 101, 173)]


def write(root: Path, counts: dict[str, int], size: Size, seed: int) -> dict[str, list[Sample]]:
    """Write the splits."""
    return {
        split: [_sample(root, split, index, size, seed) for index in range(count)] for split, count in counts.items()
    }


def _sample(root: Path, split: str, index: int, size: Size, seed: int) -> Sample:
    image_id = f"{139 + 7919 * index + (split == 'train'):012d}"
    scene = street("coco_stuff", seed, split, index, wild_size(index + 1, size), CLASSES, VOID)
    things = [v for v in np.unique(scene.things) if v and KINDS[v // 1000] in THINGS]
    instance = scene.label.copy()
    for number, value in enumerate(things):
        instance[scene.things == value] = number
    train = split == "train"
    palette = PALETTE if train and index == WITH_PALETTE else None
    mode: Mode = "L" if train and index == GREY else "RGB"
    photograph = grey(scene.photograph) if mode == "L" else scene.photograph
    files = {
        "image": save_jpeg(root / f"images/{split}2017/{image_id}.jpg", photograph, mode),
        "label": save_png(root / f"stuffthingmaps/{split}2017/{image_id}.png", scene.label, palette),
        "instance": save_png(root / f"instances/{split}2017/{image_id}.png", instance),
    }
    return Sample(image_id, photograph, scene.label, instance.astype(np.uint16), files=files)
