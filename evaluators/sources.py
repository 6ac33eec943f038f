# SPDX-License-Identifier: Apache-2.0
"""What can be measured: an image set over the label maps it was made from, or the real images of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evaluators.metric import Batch
from sis.config.protocols import ProtocolCard
from sis.data.image_set import ImageSet
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.schemas import IMAGES, PAIRS
from sis.data.tables import read_table
from sis.errors import SisError, first_of

#: Columns that say what a pair shows.
PAIR_CONTENT = ["image_id", "pixel_sha256", "label_sha256"]


@dataclass(frozen=True)
class Source:
    """A checked stream of images with their label maps.

    kind: "images" or "reference"; digest: content hash of the images; pairs_sha256: of the pairs;
    maps: number of label maps; samples: images of each; rows: images in all; meta: the image set's own facts.
    """

    kind: str
    digest: str
    pairs_sha256: str
    maps: int
    samples: int
    rows: int
    size: tuple[int, int]
    labels: LabelSpace
    meta: dict[str, Any]
    batches: Callable[[int], Iterator[Batch]]


def pairs_sha256(pairs: PairSet, count: int | None = None) -> str:
    """One hash of what the first `count` pairs show: stored pixels, and how they come to size if they are larger."""
    content = content_sha256(pairs.manifest, PAIRS, PAIR_CONTENT, count)
    how = [pairs.manifest.meta["prepare"], list(pairs.size)]
    return stable_hash([content, *how], 64) if pairs.augmented else content


def content_sha256(manifest: Manifest, schema: pa.Schema, columns: list[str], count: int | None = None) -> str:
    """One hash of ids and pixel hashes (the first `count` rows by id), however the files were written or cut."""
    tables = [read_table(path, schema, columns=columns) for path in manifest.paths()]
    rows = sorted(zip(*(c.to_pylist() for c in pa.concat_tables(tables).columns), strict=True))
    return stable_hash(rows[:count], 64)


def open_images(images_folder: Path, pairs_folder: Path, card: ProtocolCard) -> Source:
    """Open a generated image set. Raises SisError unless it is complete and fits protocol and label maps."""
    images, pairs = ImageSet.open(images_folder), PairSet.open(pairs_folder)
    _check_pairs(pairs, card, card.split, pairs_folder)
    _check_meta(images, pairs, card, images_folder)
    _check_complete(images, pairs, images_folder)

    def batches(size: int) -> Iterator[Batch]:
        for b in images.iter_batches(size):
            if b.images.shape[1:3] != pairs.size:
                raise SisError(f"images of {b.images.shape[1:3]}, label maps of {pairs.size}", where=images_folder)
            labels = np.stack([pairs.by_id(name).label for name in b.image_ids])
            yield Batch(b.image_ids, b.sample_indices, b.images, labels)

    return Source(
        kind="images",
        digest=content_sha256(images.manifest, IMAGES, ["image_id", "sample_index", "pixel_sha256"]),
        pairs_sha256=pairs_sha256(pairs),
        maps=len(pairs),
        samples=images.meta["samples_per_map"],
        rows=images.rows,
        size=pairs.size,
        labels=pairs.labels,
        meta=images.meta,
        batches=batches,
    )


def open_reference(pairs_folder: Path, card: ProtocolCard) -> Source:
    """Open the real images that the protocol compares with. Raises SisError when there are too few."""
    pairs = PairSet.open(pairs_folder)
    _check_pairs(pairs, card, card.reference.split, pairs_folder)
    count = card.reference.count or len(pairs)
    if count > len(pairs):
        raise SisError(f"the protocol asks for {count} real images, the split has {len(pairs)}", where=pairs_folder)

    def batches(size: int) -> Iterator[Batch]:
        for start in range(0, count, size):
            chosen = [pairs.get(i) for i in range(start, min(start + size, count))]
            ids, images = [p.image_id for p in chosen], np.stack([p.image for p in chosen])
            yield Batch(ids, [0] * len(ids), images, np.stack([p.label for p in chosen]))

    digest = pairs_sha256(pairs, count)
    return Source(
        kind="reference",
        digest=digest,
        pairs_sha256=digest,
        maps=count,
        samples=1,
        rows=count,
        size=pairs.size,
        labels=pairs.labels,
        meta={"dataset": pairs.dataset, "split": pairs.split, "rows": count},
        batches=batches,
    )


def _check_pairs(pairs: PairSet, card: ProtocolCard, split: str, where: Path) -> None:
    if (pairs.dataset, pairs.split) != (card.dataset, split):
        raise SisError(
            f"pairs of {pairs.dataset}/{pairs.split}, protocol {card.name!r} asks for {card.dataset}/{split}",
            where=where,
        )


def _check_meta(images: ImageSet, pairs: PairSet, card: ProtocolCard, where: Path) -> None:
    """Dataset, split, label table and size of the image set against the protocol and the pairs."""
    wanted = {
        "dataset": card.dataset,
        "split": card.split,
        "labels": pairs.labels.name,
        "size": list(pairs.size),
    }
    wrong = [f"{k} is {images.meta[k]}, expected {v}" for k, v in wanted.items() if images.meta[k] != v]
    if wrong:
        raise SisError(f"the image set does not fit protocol {card.name!r}: " + "; ".join(wrong), where=where)


def _check_complete(images: ImageSet, pairs: PairSet, where: Path) -> None:
    """Every label map, with as many samples as the set declares, each once."""
    found = images.keys()
    wanted = {(name, k) for name in pairs.ids for k in range(images.meta["samples_per_map"])}
    missing, extra = wanted - set(found), set(found) - wanted
    faults = [
        f"{len(keys)} {what} ({first_of(f'{name}#{k}' for name, k in sorted(keys))})"
        for what, keys in (("missing", missing), ("not asked for", extra))
        if keys
    ]
    if images.rows != len(set(found)):
        faults.append(f"{images.rows - len(set(found))} duplicate")
    if faults:
        raise SisError(f"of {len(wanted)} samples " + ", ".join(faults), where=where, fix="sample the image set again")
