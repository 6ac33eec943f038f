# SPDX-License-Identifier: Apache-2.0
"""Example of a method with stages of its own: answers a label map with the photograph of the most similar one.

Usage: python examples/retrieval.py match TRAIN_PAIRS VAL_PAIRS MATCHES.json
       python examples/retrieval.py images TRAIN_PAIRS MATCHES.json OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sis.data.pairs import PairSet


def match(train: str, val: str, out: str) -> None:
    """For every label map of `val`, the training id whose label map agrees on most pixels."""
    known, asked = PairSet.open(train), PairSet.open(val)
    maps = np.stack([pair.label for pair in known])
    best = {pair.image_id: known.ids[int((maps == pair.label).sum((1, 2)).argmax())] for pair in asked}
    Path(out).write_text(json.dumps(best, indent=1))


def images(train: str, matches: str, out: str) -> None:
    """Write the matched photographs as a folder of PNGs."""
    known, folder = PairSet.open(train), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, other in json.loads(Path(matches).read_text()).items():
        Image.fromarray(known.by_id(other).image).save(folder / f"{image_id}.png")


if __name__ == "__main__":
    {"match": match, "images": images}[sys.argv[1]](*sys.argv[2:])
