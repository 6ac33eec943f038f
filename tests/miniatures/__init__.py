# SPDX-License-Identifier: Apache-2.0
"""Miniatures: small drawn datasets in the exact official layouts, and traps that a reader must not fall into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniatures import ade20k, celebamask_hq, cityscapes, coco_stuff, landscapes
from miniatures.scenery import VOID, Sample, Size
from sis.errors import SisError, did_you_mean

__all__ = ["COUNTS", "DATASETS", "VOID", "Miniature", "Sample", "write"]

DATASETS = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "coco_stuff": coco_stuff,
    "celebamask_hq": celebamask_hq,
    "landscapes": landscapes,
}
COUNTS = {"train": 8, "val": 4}


@dataclass(frozen=True)
class Miniature:
    """A written miniature: its folder, and what a right reader finds in each split, sorted by image id."""

    dataset: str
    root: Path
    samples: dict[str, list[Sample]]


def write(
    dataset: str, root: Path, counts: dict[str, int] | None = None, size: Size | None = None, seed: int = 0
) -> Miniature:
    """Write a miniature into `root`, which must be empty; the same arguments give the same bytes.

    Args:
        counts: pairs of `train` and of `val`.
        size: (height, width) of photographs; ADE20K and COCO-Stuff have all sizes around it.

    Raises SisError: unknown dataset, a folder that holds something.
    """
    if dataset not in DATASETS:
        raise SisError(f"no miniature of {dataset!r}", fix=did_you_mean(dataset, DATASETS))
    if root.exists() and any(root.iterdir()):
        raise SisError("the folder is not empty", where=root, fix="remove it, or choose another one")
    root.mkdir(parents=True, exist_ok=True)
    module = DATASETS[dataset]
    return Miniature(dataset, root, module.write(root, counts or COUNTS, size or module.SIZE, seed))
