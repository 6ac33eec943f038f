# SPDX-License-Identifier: Apache-2.0
"""Cityscapes in miniature: leftImg8bit and gtFine with cities, 8-bit label ids, 16-bit instance ids and their company.

Layout, ids and train ids: mcordts/cityscapesScripts (README, helpers/labels.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from miniatures.scenery import KINDS, Sample, Size, save_png, street

SIZE = (64, 128)
CITIES = {"train": ("aachen", "bochum", "zurich"), "val": ("frankfurt", "munster"), "test": ("berlin",)}
CLASSES = {
    "sky": 23, "building": 11, "tree": 21, "grass": 22, "road": 7, "sidewalk": 8,
    "car": 26, "person": 24, "pole": 17, "sign": 20,
}  # fmt: skip
#: Every other picture has bicycles where the rest have cars: the largest id of the table.
BICYCLE = 33
#: "unlabeled" is a class of Cityscapes, not the absence of one.
UNLABELLED = 0
#: Kinds with instances; poles and signs are stuff here.
THINGS = ("car", "person")
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 17: 5, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 26: 13, 33: 18}


def write(root: Path, counts: dict[str, int], size: Size, seed: int) -> dict[str, list[Sample]]:
    """Write the splits, and one picture of the official test split, whose labels say nothing."""
    samples = {
        split: sorted((_sample(root, split, i, size, seed) for i in range(count)), key=lambda s: s.image_id)
        for split, count in counts.items()
    }
    _sample(root, "test", 0, size, seed)
    for package in ("leftImg8bit", "gtFine"):
        (root / package / "README").write_text("A miniature in the layout of Cityscapes; every picture is drawn.\n")
    return samples


def _sample(root: Path, split: str, index: int, size: Size, seed: int) -> Sample:
    city = CITIES[split][index % len(CITIES[split])]
    image_id = f"{city}_{index // 3:06d}_{19 + 37 * index:06d}"
    classes = CLASSES | ({"car": BICYCLE} if index % 2 else {})
    scene = street("cityscapes", seed, split, index, size, classes, UNLABELLED)
    label = scene.label if split != "test" else np.full_like(scene.label, UNLABELLED)
    instance = label.astype(np.uint16)
    for value in np.unique(scene.things if split != "test" else 0):
        kind, number = KINDS[value // 1000], value % 1000
        if value and kind in THINGS:
            instance[scene.things == value] = classes[kind] * 1000 + number
    photograph = save_png(root / f"leftImg8bit/{split}/{city}/{image_id}_leftImg8bit.png", scene.photograph)
    stem = root / f"gtFine/{split}/{city}/{image_id}_gtFine"
    files = {
        "image": photograph,
        "label": save_png(Path(f"{stem}_labelIds.png"), label),
        "instance": save_png(Path(f"{stem}_instanceIds.png"), instance),
    }
    _write_company(stem, label)
    return Sample(image_id, scene.photograph, label, instance, files=files)


def _write_company(stem: Path, label: np.ndarray) -> None:
    """The files that lie beside every label map and that a reader must not take for one."""
    train_ids = np.full(256, 255, np.uint8)
    train_ids[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    save_png(Path(f"{stem}_labelTrainIds.png"), train_ids[label])
    colours = np.stack([label * 7, label * 5, label * 3, np.full_like(label, 255)], axis=-1)
    save_png(Path(f"{stem}_color.png"), colours)
    height, width = label.shape
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    outline = {"imgHeight": height, "imgWidth": width, "objects": [{"label": "static", "polygon": corners}]}
    Path(f"{stem}_polygons.json").write_text(json.dumps(outline))
