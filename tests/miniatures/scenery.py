# SPDX-License-Identifier: Apache-2.0
"""What all miniatures are made of: drawn street scenes, samples with their expected values, and files of pictures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sis.data.scenes import make_scene

Size = tuple[int, int]
Mode = Literal["RGB", "L", "CMYK"]

#: Unlabelled pixels in the expected labels of every miniature, whatever the dataset's files call them.
VOID = 255

#: Kinds of the drawn scenes; a dataset gives each kind one of its own classes.
KINDS = ("sky", "building", "tree", "grass", "road", "sidewalk", "car", "person", "pole", "sign")

#: Shapes of pictures from the wild, (height, width) at a short side of about 64: odd, portrait, landscape, long.
SHAPES = ((48, 64), (65, 43), (41, 57), (90, 63), (63, 85), (51, 75), (40, 89), (77, 45))


@dataclass(frozen=True)
class Sample:
    """One pair as it was drawn, and the files that now hold it.

    photograph: uint8 `(h, w, 3)` before any JPEG, None where none was written; label: uint8 `(h, w)`, ids of the
    dataset's table counted from 0, VOID where unlabelled; instance: uint16 `(h, w)`, the values of the instance file,
    None where there is none; reference_id: id of the training photograph that shows the wanted style.
    """

    image_id: str
    photograph: NDArray[np.uint8] | None
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16] | None = None
    reference_id: str = ""
    files: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Street:
    """A street scene with a dataset's class ids; things: uint16 `(h, w)`, kind * 1000 + running number, 0 for stuff."""

    photograph: NDArray[np.uint8]
    label: NDArray[np.uint8]
    things: NDArray[np.uint16]


def street(dataset: str, seed: int, split: str, index: int, size: Size, classes: dict[str, int], void: int) -> Street:
    """Draw scene `index` of a split; `classes` gives each of KINDS its id, `void` is the id of unlabelled pixels."""
    scene = make_scene(zlib.crc32(f"{dataset} {seed}".encode()), split, index, size)
    table = np.full(256, void, np.uint8)
    table[: len(KINDS)] = [classes[kind] for kind in KINDS]
    return Street(scene.image, table[scene.label], scene.instance)


def wild_size(index: int, size: Size) -> Size:
    """The size of picture `index` of a dataset whose pictures have all sizes; `size` sets their scale, 64 meaning 1."""
    height, width = SHAPES[index % len(SHAPES)]
    return round(height * size[0] / 64), round(width * size[1] / 64)


def save_png(path: Path, array: NDArray, palette: Sequence[int] | None = None) -> Path:
    """Write uint8 or uint16 `(h, w)`, or uint8 `(h, w, 3 or 4)`, as PNG; with a palette its values are indices."""
    picture = Image.fromarray(array)
    if palette is not None:
        picture.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def save_jpeg(path: Path, photograph: NDArray[np.uint8], mode: Mode = "RGB") -> Path:
    """Write `(h, w, 3)` as a JPEG that is hardly lossy, in the colours of `mode`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).convert(mode).save(path, quality=97, subsampling=0)
    return path


def grey(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photograph without its colours, still `(h, w, 3)`."""
    return np.asarray(Image.fromarray(photograph).convert("L").convert("RGB"))
