# SPDX-License-Identifier: Apache-2.0
"""Example of a folder of images: every pixel in the mean training colour of its class at its height in the picture.

Usage: python examples/row_colours.py TRAIN_PAIRS VAL_PAIRS OUT_FOLDER
Stands for results that somebody publishes as a folder of PNGs.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sis.data.pairs import PairSet


def row_colours(train: PairSet) -> np.ndarray:
    """Mean colour `(256, h, 3)` by stored id and row; a class never seen in a row has its overall mean there."""
    height = train.size[0]
    total, count = np.zeros((256, height, 3)), np.zeros((256, height, 1))
    rows = np.repeat(np.arange(height), train.size[1])
    for pair in train:
        where = (pair.label.ravel(), rows)
        np.add.at(total, where, pair.image.reshape(-1, 3).astype(float))
        np.add.at(count, where, 1.0)
    overall = total.sum(1, keepdims=True) / np.maximum(count.sum(1, keepdims=True), 1)
    return np.where(count > 0, total / np.maximum(count, 1), overall)


def main(train: str, val: str, out: str) -> None:
    colours, folder = row_colours(PairSet.open(train)), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for pair in PairSet.open(val):
        image = colours[pair.label, np.arange(pair.label.shape[0])[:, None]]
        Image.fromarray(image.round().astype(np.uint8)).save(folder / f"{pair.image_id}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
