# SPDX-License-Identifier: Apache-2.0
"""Stage 1, prepare: raw data become verified pair shards."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from sis.config.cards import DatasetCard
from sis.config.files import label_space, project_root
from sis.data.atomic import atomic_path
from sis.data.image_set import SHARD_SIZE, shard_name
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, stable_hash, write_manifest
from sis.data.pairs import ROW_GROUP, Pair, pairs_table, shard_is_good
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS
from sis.data.tables import read_table, table_metadata, write_table_file
from sis.errors import SisError, did_you_mean, first_of
from sis.progress import Progress

#: Raised whenever prepared pixels may change although the card did not.
VERSION = 1


def layout_module(card: DatasetCard) -> ModuleType:
    """The module that reads the card's files."""
    folder = Path(__file__).parent / "layouts"
    known = [p.stem for p in folder.glob("*.py") if p.stem != "__init__"]
    if card.layout not in known:
        raise SisError(f"unknown layout {card.layout!r} of dataset {card.name}", fix=did_you_mean(card.layout, known))
    return importlib.import_module(f"sis.data.layouts.{card.layout}")


def prepare(card: DatasetCard, split: str, root: Path, out: Path) -> Manifest:
    """Write the pairs of one split to `out`; finished shards of an interrupted run of the same card are kept.

    Raises SisError: unknown split, another number of pairs than the card expects, label ids outside the table,
    pictures of another size or with different image and label sizes.
    """
    if split not in card.splits:
        raise SisError(f"dataset {card.name} has no split {split!r}", fix=did_you_mean(split, card.splits))
    run = RunRecord.start(seeds={k: v for k, v in card.options.items() if k == "seed" and isinstance(v, int)})
    layout, space = layout_module(card), label_space(card.labels)
    ids = layout.ids(card, split, root)
    _check_ids(card, split, ids)
    key = stable_hash([VERSION, card.model_dump(), space.model_dump(), split], 16)
    names, histogram = [], np.zeros(256, np.int64)
    with Progress(f"prepare {card.name}/{split}", len(ids), "images") as progress:
        for number, start in enumerate(range(0, len(ids), SHARD_SIZE)):
            part = ids[start : start + SHARD_SIZE]
            path = out / shard_name(number)
            names.append(path)
            if shard_is_good(path, key):
                histogram += np.array(_stored_histogram(path))
            else:
                histogram += _write_shard(path, key, card, space, [(split, i) for i in part], root)
            progress.update(len(part))
    meta = {
        "dataset": card.name,
        "split": split,
        "count": len(ids),
        "size": card.size,
        "labels": space.model_dump(),
        "label_pixels": {str(i): int(n) for i, n in enumerate(histogram) if n},
        "licence": card.licence,
        "subset": card.subset,
        "key": key,
    }
    return write_manifest(out, "pairs", names, meta, run)


def _check_ids(card: DatasetCard, split: str, ids: list[str]) -> None:
    expected = card.splits[split].count
    if len(ids) != expected:
        raise SisError(
            f"{card.name}/{split} has {len(ids)} pairs, its card expects {expected}",
            fix="check the data root",
        )
    if len(set(ids)) != len(ids):
        raise SisError(
            f"{card.name}/{split} has duplicate ids: {first_of(sorted({i for i in ids if ids.count(i) > 1}))}"
        )
    if ids != sorted(ids):
        raise SisError(f"{card.name}/{split}: a layout must return sorted ids")


def _write_shard(
    path: Path, key: str, card: DatasetCard, space: LabelSpace, ids: list[tuple[str, str]], root: Path
) -> np.ndarray:
    layout, pairs, histogram = layout_module(card), [], np.zeros(256, np.int64)
    for split, image_id in ids:
        pair: Pair = layout.load(card, split, root, image_id)
        where = f"{card.name}/{split}, image {image_id}"
        if pair.label.shape != tuple(card.size) or pair.image.shape != (*card.size, 3):
            raise SisError(f"image {pair.image.shape}, label {pair.label.shape}, card says {card.size}", where=where)
        space.check(pair.label, where)
        histogram += np.bincount(pair.label.ravel(), minlength=256)
        pairs.append(pair)
    metadata = {"key": key, "label_pixels": histogram.tolist()}
    with atomic_path(path) as temporary:
        write_table_file(pairs_table(pairs), temporary, PAIRS, metadata, row_group=ROW_GROUP)
    return histogram


def _stored_histogram(path: Path) -> list[int]:
    read_table(path, PAIRS, columns=["image_id"])
    return table_metadata(path)["label_pixels"]


def data_root(configured: str) -> Path:
    """The root of the raw datasets; relative paths start at the project's root."""
    path = Path(configured)
    return path if path.is_absolute() else project_root() / path
