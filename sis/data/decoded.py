# SPDX-License-Identifier: Apache-2.0
"""Training data: a split decoded once into memory-mapped uint8 arrays, so that batches cost no decoding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sis.data.atomic import atomic_path
from sis.data.manifest import read_manifest, write_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.errors import SisError
from sis.progress import Progress

_FIELDS = ("images", "labels", "instances")


@dataclass(frozen=True)
class TrainingData:
    """All pairs of a split, in the order of `ids`.

    images: uint8 `(n, h, w, 3)`; labels: uint8 `(n, h, w)`, one-hot channels (void last); instances: uint16
    `(n, h, w)`. The arrays are memory-mapped: only the pages that a batch touches are read.
    """

    ids: list[str]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.ids)


def decode_pairs(pairs: PairSet, cache: Path) -> TrainingData:
    """Decode every pair into `cache`, or reuse what an earlier run decoded from the very same pairs."""
    folder = cache / pairs.manifest.digest[:16]
    try:
        read_manifest(folder, "decoded")
    except SisError:  # absent, cut short or altered: the pairs themselves are at hand
        _decode_into(folder, pairs)
    arrays = {field: np.load(folder / f"{field}.npy", mmap_mode="r") for field in _FIELDS}
    return TrainingData(pairs.ids, arrays["images"], arrays["labels"], arrays["instances"])


def _decode_into(folder: Path, pairs: PairSet) -> None:
    n, (h, w) = len(pairs), pairs.size
    run = RunRecord.start()
    with (
        atomic_path(folder / "images.npy") as images_path,
        atomic_path(folder / "labels.npy") as labels_path,
        atomic_path(folder / "instances.npy") as instances_path,
        Progress(f"decode {pairs.dataset}/{pairs.split}", n, "images") as progress,
    ):
        images = np.lib.format.open_memmap(images_path, "w+", np.uint8, (n, h, w, 3))
        labels = np.lib.format.open_memmap(labels_path, "w+", np.uint8, (n, h, w))
        instances = np.lib.format.open_memmap(instances_path, "w+", np.uint16, (n, h, w))
        for path in (images_path, labels_path, instances_path):
            _reserve(path)
        for i, pair in enumerate(pairs):
            images[i], instances[i] = pair.image, pair.instance
            labels[i] = pairs.labels.channels(pair.label, where=pair.image_id)
            progress.update(1)
        for array in (images, labels, instances):
            array.flush()
    facts = {"dataset": pairs.dataset, "split": pairs.split, "pairs_digest": pairs.manifest.digest}
    write_manifest(folder, "decoded", [folder / f"{field}.npy" for field in _FIELDS], facts, run)


def _reserve(path: Path) -> None:
    """Take the disk space of a sparse file now: a mapped page that finds none kills the process without a word."""
    with path.open("r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
