# SPDX-License-Identifier: Apache-2.0
"""The landscapes of the third Jittor challenge in miniature: no test photographs, 16-bit test masks, style references.

Layout: JittorRepos/jittor-GAN challenge pages as used by the released code of IIDM; 29 classes, all pixels labelled.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from miniatures.scenery import Sample, Size, save_jpeg, save_png, street

SIZE = (48, 64)
CLASSES = {
    "sky": 1, "building": 11, "tree": 5, "grass": 12, "road": 23, "sidewalk": 19,
    "car": 0, "person": 14, "pole": 17, "sign": 27,
}  # fmt: skip
#: There are no unlabelled pixels; what nobody named is "other", the last id.
OTHER = 28


def write(root: Path, counts: dict[str, int], size: Size, seed: int) -> dict[str, list[Sample]]:
    """Write training pairs, test masks and the reference photograph of each mask, every one another."""
    train = [_train(root, index, size, seed) for index in range(counts["train"])]
    train.sort(key=lambda s: s.image_id)
    val = [_val(root, index, size, seed, train[-1 - index % len(train)].image_id) for index in range(counts["val"])]
    val.sort(key=lambda s: s.image_id)
    pairs = {f"{s.image_id}.png": f"{s.reference_id}.jpg" for s in val}
    (root / "label_to_img.json").write_text(json.dumps(pairs))
    return {"train": train, "val": val}


def _name(split: str, index: int) -> str:
    """A name as photographs from Flickr have them."""
    number = (index + 1) * (2654435761 if split == "train" else 2246822519)
    return f"{number % 9973 + 1000}_{number % 2**40:010x}_b"


def _train(root: Path, index: int, size: Size, seed: int) -> Sample:
    image_id = _name("train", index)
    scene = street("landscapes", seed, "train", index, size, CLASSES, OTHER)
    files = {
        "image": save_jpeg(root / f"train/imgs/{image_id}.jpg", scene.photograph),
        "label": save_png(root / f"train/labels/{image_id}.png", scene.label),
    }
    return Sample(image_id, scene.photograph, scene.label, files=files)


def _val(root: Path, index: int, size: Size, seed: int, reference_id: str) -> Sample:
    image_id = _name("val", index)
    label = street("landscapes", seed, "val", index, size, CLASSES, OTHER).label
    files = {"label": save_png(root / f"val_B_labels_resized/{image_id}.png", label.astype(np.uint16))}
    return Sample(image_id, None, label, reference_id=reference_id, files=files)
