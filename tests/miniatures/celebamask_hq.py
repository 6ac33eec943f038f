# SPDX-License-Identifier: Apache-2.0
"""CelebAMask-HQ in miniature: a mask a part, absent where the part is, composed in the official order; sparse indices.

Layout, parts and their order: switchablenorms/CelebAMask-HQ (README, face_parsing/Data_preprocessing/g_mask.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniatures.scenery import Sample, Size, save_jpeg, save_png

SIZE = (128, 128)
#: Photographs are twice as large as masks.
SCALE = 2
#: Where the rule of the sub-folder (index // FOLDER) and of sorting by number can go wrong.
INDICES = (0, 1, 1999, 2000, 2001, 3999, 4000, 9999, 10000, 15007, 20000, 29999)
FOLDER = 2000
CELEBA = 202_599

#: Parts in the order of their ids 1..18; a later part covers an earlier one. Ellipse (x, y, half width, half height)
#: in units of the picture, chance of being there, colour.
PARTS: dict[str, tuple[tuple[float, float, float, float], float, tuple[int, int, int]]] = {
    "skin": ((0.50, 0.50, 0.25, 0.33), 1.0, (224, 180, 150)),
    "nose": ((0.50, 0.54, 0.05, 0.10), 1.0, (205, 150, 125)),
    "eye_g": ((0.50, 0.43, 0.21, 0.07), 0.4, (40, 40, 60)),
    "l_eye": ((0.40, 0.43, 0.05, 0.03), 0.9, (90, 120, 160)),
    "r_eye": ((0.60, 0.43, 0.05, 0.03), 0.9, (70, 100, 140)),
    "l_brow": ((0.40, 0.36, 0.07, 0.02), 0.9, (90, 60, 40)),
    "r_brow": ((0.60, 0.36, 0.07, 0.02), 0.9, (80, 50, 30)),
    "l_ear": ((0.25, 0.50, 0.04, 0.09), 0.7, (210, 140, 120)),
    "r_ear": ((0.75, 0.50, 0.04, 0.09), 0.7, (200, 130, 110)),
    "mouth": ((0.50, 0.71, 0.08, 0.04), 0.6, (120, 20, 30)),
    "u_lip": ((0.50, 0.685, 0.09, 0.02), 1.0, (190, 80, 90)),
    "l_lip": ((0.50, 0.735, 0.09, 0.02), 1.0, (200, 70, 80)),
    "hair": ((0.50, 0.22, 0.30, 0.16), 0.9, (60, 40, 20)),
    "hat": ((0.50, 0.13, 0.33, 0.11), 0.3, (30, 90, 40)),
    "ear_r": ((0.25, 0.60, 0.02, 0.03), 0.4, (230, 210, 90)),
    "neck_l": ((0.50, 0.88, 0.12, 0.02), 0.3, (240, 230, 200)),
    "neck": ((0.50, 0.87, 0.14, 0.13), 0.9, (215, 165, 135)),
    "cloth": ((0.50, 1.02, 0.42, 0.12), 0.9, (50, 60, 130)),
}
BACKGROUND = (120, 150, 170)


def write(root: Path, counts: dict[str, int], size: Size, seed: int) -> dict[str, list[Sample]]:
    """Write every face and the mapping file; val is the faces with the highest indices in the original CelebA."""
    total = counts["train"] + counts["val"]
    spare = (index for index in range(10, 30_000, 5) if index not in INDICES)
    indices = sorted([*INDICES, *(next(spare) for _ in range(total - len(INDICES)))][:total])
    originals = np.random.default_rng([seed, CELEBA]).choice(CELEBA, total, replace=False).tolist()
    lines = [f"{idx:<8d}{orig:<12d}{orig + 1:06d}.jpg" for idx, orig in zip(indices, originals, strict=True)]
    faces = {orig: _sample(root, idx, size, seed) for idx, orig in zip(indices, originals, strict=True)}
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx     orig_idx    orig_file", *lines]) + "\n")
    ranked = [faces[orig] for orig in sorted(faces)]
    splits = {"train": ranked[: counts["train"]], "val": ranked[counts["train"] :]}
    return {split: sorted(samples, key=lambda s: s.image_id) for split, samples in splits.items()}


def _sample(root: Path, index: int, size: Size, seed: int) -> Sample:
    dice = np.random.default_rng([seed, index])
    masks = _masks(dice, (size[0] // SCALE, size[1] // SCALE))
    label = np.zeros((size[0] // SCALE, size[1] // SCALE), np.uint8)
    files = {}
    for number, part in enumerate(PARTS, start=1):
        if part in masks:
            label[masks[part]] = number
            white = np.repeat(masks[part][..., None], 3, axis=-1).astype(np.uint8) * np.uint8(255)
            path = root / f"CelebAMask-HQ-mask-anno/{index // FOLDER}/{index:05d}_{part}.png"
            files[part] = save_png(path, white)  # the official masks are RGB
    photograph = _photograph(dice, label)
    files["image"] = save_jpeg(root / f"CelebA-HQ-img/{index}.jpg", photograph)
    return Sample(f"{index:05d}", photograph, label, files=files)


def _masks(dice: np.random.Generator, size: Size) -> dict[str, np.ndarray]:
    """Boolean maps of the parts that are there; neighbours overlap, as they do in the official masks."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    x, y = (x + 0.5) / size[1] + dice.uniform(-0.06, 0.06), (y + 0.5) / size[0] + dice.uniform(-0.05, 0.05)
    masks = {}
    for part, ((middle_x, middle_y, half_width, half_height), chance, _) in PARTS.items():
        inside = ((x - middle_x) / half_width) ** 2 + ((y - middle_y) / half_height) ** 2 <= 1
        if dice.random() < chance and inside.any():
            masks[part] = inside
    return masks


def _photograph(dice: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """Colours of the parts under one light, with a grain that differs from part to part."""
    colours = np.array([BACKGROUND, *(colour for _, _, colour in PARTS.values())], np.float64)
    large = label.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    light = np.linspace(dice.uniform(0.7, 1.1), dice.uniform(0.7, 1.1), large.shape[1])[:, None]
    grain = dice.normal(size=large.shape)[..., None] * (2 + large % 5)[..., None]
    return np.clip(np.rint(colours[large] * light + grain), 0, 255).astype(np.uint8)
