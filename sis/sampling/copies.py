# SPDX-License-Identifier: Apache-2.0
"""Copied pictures, told by the hashes of their pixels: within an image set, of the ground truth, of training data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sis.data.atomic import write_text_atomic
from sis.data.images import pixel_sha256
from sis.data.manifest import stable_hash
from sis.data.pairs import PairSet, decode_row
from sis.data.parallel import decoding_threads, threaded_map
from sis.data.schemas import IMAGES, PAIRS
from sis.data.tables import read_table
from sis.errors import SisError, first_of
from sis.progress import Progress
from sis.sampling.shards import Key

#: A larger part of an image set than this may not be copies; below it they are reported.
MOST_COPIES = 0.1

#: Image ids by the hash of their photograph's pixels.
Photographs = Mapping[str, str]


@dataclass(frozen=True)
class Copies:
    """Pictures of an image set that are, pixel for pixel, another picture; as `copy = original`.

    images: pictures in all; within: shown for another label map of the set already; truth: the photograph of a label
    map of the judged split; training: a training photograph; training_checked: whether these were looked at.
    """

    images: int
    within: list[str]
    truth: list[str]
    training: list[str]
    training_checked: bool

    def recorded(self) -> dict[str, dict[str, int]]:
        """How many there are of each kind, as an entry of the set's manifest; nothing where there are none."""
        counts = {"within": len(self.within), "truth": len(self.truth), "training": len(self.training)}
        return {"copies": {kind: n for kind, n in counts.items() if n}} if any(counts.values()) else {}

    def badges(self) -> list[str]:
        """One sentence for each kind of copy that there is."""
        kinds = [
            (self.within, "show the very pixels of another label map's picture"),
            (self.truth, "are photographs of the judged split"),
            (self.training, "are training photographs"),
        ]
        return [f"{len(names)} of {self.images} images {what}: {first_of(names)}" for names, what in kinds if names]

    def refuse(self, where: object) -> None:
        """Raise SisError when more than MOST_COPIES of the images are copies of one another or of the ground truth.

        Training photographs are reported only: a method that looks them up is a method.
        """
        if len(self.truth) > MOST_COPIES * self.images:
            fault = f"{len(self.truth)} of {self.images} images are the real photographs of the split themselves"
            fix = "hand in generated images; the control `real` scores the photographs"
            raise SisError(f"{fault}: {first_of(self.truth)}", where=where, fix=fix)
        if len(self.within) > MOST_COPIES * self.images:
            fault = f"{len(self.within)} of {self.images} images have the very pixels of another label map's picture"
            raise SisError(f"{fault}: {first_of(self.within)}", where=where, fix="draw every label map by itself")


def find_copies(hashes: Mapping[Key, str], truth: Photographs, training: Photographs | None) -> Copies:
    """Look for copies among images given by the hashes of their pixels (`pixel_hashes` of their set)."""
    several = any(sample for _, sample in hashes)
    first: dict[str, str] = {}
    within, real, seen = [], [], []
    for (image_id, sample), pixels in sorted(hashes.items()):
        name = f"{image_id}#{sample}" if several else image_id
        # Samples of one label map may agree: that is no diversity, which the metrics tell.
        if first.setdefault(pixels, image_id) != image_id:
            within.append(f"{name} = {first[pixels]}")
        if pixels in truth:
            real.append(f"{name} = {truth[pixels]}")
        if training is not None and pixels in training:
            seen.append(f"{name} = {training[pixels]}")
    return Copies(len(hashes), within, real, seen, training is not None)


def photographs(pairs: PairSet, cache: Path | None = None) -> Photographs:
    """The photographs of a split, as they were and at the dataset's size: pixel hash to image id.

    Where they are stored larger (augmented splits) each is brought to size once, and its hash kept in `cache`.
    """
    found: dict[str, str] = {}
    for path in pairs.manifest.paths():
        for row in read_table(path, PAIRS, columns=["image_id", "pixel_sha256", "source_sha256"]).to_pylist():
            found.update({row[name]: row["image_id"] for name in ("source_sha256", "pixel_sha256") if row[name]})
    return {**found, **_at_size(pairs, cache)} if pairs.augmented else found


def _at_size(pairs: PairSet, cache: Path | None) -> dict[str, str]:
    if cache is not None and cache.is_file():
        try:
            kept = json.loads(cache.read_text())
            if kept["pairs"] == pairs.manifest.digest and kept["digest"] == stable_hash(kept["photographs"], 64):
                return kept["photographs"]
        except (ValueError, KeyError, TypeError):
            pass  # damaged: made again
    made: dict[str, str] = {}
    threads = decoding_threads()
    rows = (pairs.row(index) for index in range(len(pairs)))
    hashed = threaded_map(lambda row: _hash_at_size(pairs, *row), rows, threads, 4 * threads)
    with Progress(f"photographs of {pairs.dataset}/{pairs.split}", len(pairs), "images") as progress, closing(hashed):
        for image_id, pixels in hashed:
            made.update({pixels: image_id} if pixels else {})
            progress.update(1)
    if cache is not None:
        body = {"pairs": pairs.manifest.digest, "digest": stable_hash(made, 64), "photographs": made}
        write_text_atomic(cache, json.dumps(body))
    return made


def _hash_at_size(pairs: PairSet, row: dict, where: str) -> tuple[str, str]:
    photograph = pairs.policy.view(decode_row(row, where)).photograph
    return row["image_id"], "" if photograph is None else pixel_sha256(photograph)


def shard_hashes(paths: list[Path]) -> dict[Key, str]:
    """The recorded pixel hash of every image of some shards."""
    columns = ["image_id", "sample_index", "pixel_sha256"]
    rows = [row for path in paths for row in read_table(path, IMAGES, columns=columns).to_pylist()]
    return {(row["image_id"], row["sample_index"]): row["pixel_sha256"] for row in rows}
