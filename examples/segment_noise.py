# SPDX-License-Identifier: Apache-2.0
"""Example of a foreign program: paints every class of a label map in a random colour with random grain.

Usage: python examples/segment_noise.py LABELS_FOLDER OUT_FOLDER IDS_FILE SEED
It knows nothing of sis-bench: it reads PNG label maps and a list of ids, and writes PNG images.
"""

import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def paint(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    colours = rng.integers(40, 216, size=(256, 3))
    grain = rng.integers(0, 40, size=(256, 1))
    noise = rng.random((*labels.shape, 1)) - 0.5
    return np.clip(colours[labels] + grain[labels] * noise, 0, 255).astype(np.uint8)


def main(labels: str, out: str, ids: str, seed: str) -> None:
    for line in Path(ids).read_text().splitlines():
        image_id, sample = line.split("\t")
        rng = np.random.default_rng([int(seed), zlib.crc32(image_id.encode()), int(sample)])
        label_map = np.asarray(Image.open(Path(labels, f"{image_id}.png")))
        Image.fromarray(paint(label_map, rng)).save(Path(out, f"{image_id}_{int(sample):03d}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
