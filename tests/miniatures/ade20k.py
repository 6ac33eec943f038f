# SPDX-License-Identifier: Apache-2.0
"""ADE20K (SceneParse150) in miniature: JPEGs of all shapes, grey and CMYK among them, labels 1..150, 0 for unlabelled.

Layout and values: CSAILVision/sceneparsing (README, objectInfo150.txt).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniatures.scenery import VOID, Mode, Sample, Size, grey, save_jpeg, save_png, street, wild_size

SIZE = (64, 64)
FOLDERS = {"train": "training", "val": "validation"}
#: Ids, one less than the values of the files: flag is the last of the 150.
CLASSES = {
    "sky": 2, "building": 1, "tree": 4, "grass": 9, "road": 6, "sidewalk": 11,
    "car": 20, "person": 12, "pole": 149, "sign": 43,
}  # fmt: skip
#: Training pictures that are not RGB.
MODES: dict[int, Mode] = {2: "L", 5: "CMYK"}


def write(root: Path, counts: dict[str, int], size: Size, seed: int) -> dict[str, list[Sample]]:
    """Write the splits and the text files that come with them."""
    samples = {
        split: [_sample(root, split, index, size, seed) for index in range(count)] for split, count in counts.items()
    }
    names = [f"{s.image_id} street" for split in counts for s in samples[split]]
    (root / "sceneCategories.txt").write_text("\n".join(names) + "\n")
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n")
    return samples


def _sample(root: Path, split: str, index: int, size: Size, seed: int) -> Sample:
    image_id = f"ADE_{split}_{index + 1:08d}"
    scene = street("ade20k", seed, split, index, wild_size(index, size), CLASSES, VOID)
    mode = MODES.get(index, "RGB") if split == "train" else "RGB"
    photograph = grey(scene.photograph) if mode == "L" else scene.photograph
    values = (scene.label + np.uint8(1)).astype(np.uint8)  # VOID + 1 is 0 in 8 bits
    files = {
        "image": save_jpeg(root / f"images/{FOLDERS[split]}/{image_id}.jpg", photograph, mode),
        "label": save_png(root / f"annotations/{FOLDERS[split]}/{image_id}.png", values),
    }
    return Sample(image_id, photograph, scene.label, files=files)
