# SPDX-License-Identifier: Apache-2.0
"""Stage 1, prepare: raw data become verified pair shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sis.config.cards import DatasetCard
from sis.config.files import label_space
from sis.data.atomic import atomic_path
from sis.data.image_set import SHARD_SIZE, shard_name
from sis.data.labels import LabelSpace
from sis.data.layouts import Entry, layout_module
from sis.data.manifest import Manifest, stable_hash, write_manifest
from sis.data.pair import Pair
from sis.data.pairs import ROW_GROUP, good_shard, label_histogram, pair_row
from sis.data.parallel import ordered_map, worthwhile
from sis.data.policies import Policy, policy_of
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS
from sis.data.tables import table_writer
from sis.errors import SisError, did_you_mean, first_of
from sis.progress import Progress

#: Raised whenever prepared pixels may change although the card did not.
VERSION = 2
#: Ids become file names, HTML and shell words.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Preparer:
    """Turns the entries of one split into rows of its shards; travels to worker processes."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split, self.space = card, split, label_space(card.labels)
        self.size: tuple[int, int] = (card.size[0], card.size[1])
        self.policy: Policy = policy_of(card.prepare, self.size, self.space)
        self.augmented = self.policy.AUGMENTS and split == "train"

    def raw(self, entry: Entry) -> Pair:
        """Read and check one raw pair. Raises SisError naming the image."""
        card, where = self.card, f"{self.card.name}/{self.split}, image {entry.image_id}"
        pair: Pair = layout_module(card).read(card, entry)
        if (pair.photograph is not None) != card.splits[self.split].photographs:
            raise SisError("photograph where the card says there is none, or none where it says there is", where=where)
        photo, label, scale = pair.photograph, pair.label, card.files.label_scale
        if photo is not None and photo.shape[:2] != (label.shape[0] * scale, label.shape[1] * scale):
            expected = f", the card says {scale} times larger" if scale > 1 else ""
            fault = f"photograph of {_shown(photo)} and label map of {_shown(label)} do not fit{expected}"
            raise SisError(fault, where=where, fix="pair each label map with its own photograph")
        self.space.check(label, where)
        if card.prepare.void_becomes is not None and self.space.void is not None:
            pair = replace(pair, label=np.where(label == self.space.void, np.uint8(card.prepare.void_becomes), label))
        if card.files.instances == "label":
            pair = replace(pair, instance=pair.label.astype(np.uint16))
        if pair.instance is not None and pair.instance.shape != label.shape:
            raise SisError(f"instance map of {_shown(pair.instance)}, label map of {_shown(label)}", where=where)
        if card.edges and pair.instance is None:
            raise SisError("no instance map, but the card says `edges: true`", where=where)
        return pair

    def stored(self, pair: Pair) -> Pair:
        """A raw pair as its shard holds it."""
        return self.policy.keep(pair) if self.augmented else self.policy.view(pair)

    def row(self, entry: Entry) -> tuple[dict, np.ndarray]:
        """One encoded row and its label histogram, int64 `(256,)`."""
        pair = self.stored(self.raw(entry))
        return pair_row(pair, self.size), label_histogram(pair)


def prepare(card: DatasetCard, split: str, root: Path, out: Path, workers: int = 1) -> Manifest:
    """Write the pairs of one split to `out`; finished shards of an interrupted run of the same card are kept.

    Args:
        root: the dataset's own folder of raw files.
        workers: processes that read, resize and encode; they change no byte of the result.

    Raises SisError: unknown split, another number of pairs than the card expects, and everything that makes a pair
    unfit (see docs/datasets.md), naming the file.
    """
    run = RunRecord.start(seeds={k: v for k, v in card.options.items() if k == "seed" and isinstance(v, int)})
    entries = checked_entries(card, split, root)
    preparer = Preparer(card, split)
    key = _key(card, split, preparer.space, entries)
    shards = [entries[i : i + SHARD_SIZE] for i in range(0, len(entries), SHARD_SIZE)]
    names = [out / shard_name(number) for number in range(len(shards))]
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    with Progress(f"prepare {card.name}/{split}", len(entries), "images") as progress:
        missing = []
        for path, part in zip(names, shards, strict=True):
            kept = good_shard(path, key)
            if kept is None:
                missing.append((path, part))
                continue
            for histogram in kept:
                pixels, images = pixels + histogram, images + (histogram > 0)
            progress.update(len(part))
        tasks = [e for _, part in missing for e in part]
        rows = ordered_map(preparer.row, tasks, worthwhile(workers, len(tasks)), preload=__name__)
        for path, part in missing:
            for histogram in _write_shard(path, key, rows, len(part)):
                pixels, images = pixels + histogram, images + (histogram > 0)
                progress.update(1)
    meta = _meta(preparer, len(entries), key)
    meta["label_pixels"] = {str(i): int(n) for i, n in enumerate(pixels) if n}
    meta["label_images"] = {str(i): int(n) for i, n in enumerate(images) if n}
    return write_manifest(out, "pairs", names, meta, run)


def checked_entries(card: DatasetCard, split: str, root: Path) -> list[Entry]:
    """The entries of a split, with ids that are sorted, distinct on every file system, and as many as expected."""
    if split not in card.splits:
        raise SisError(f"dataset {card.name} has no split {split!r}", fix=did_you_mean(split, card.splits))
    entries: list[Entry] = layout_module(card).entries(card, split, root)
    ids, where = [e.image_id for e in entries], f"{card.name}/{split}"
    _refuse([i for i in ids if not _ID.fullmatch(i)], "no good ids", where, "use letters, digits, '_', '.' and '-'")
    _refuse(_repeated(ids), "duplicate ids", where, "give every pair a name of its own")
    lower = set(_repeated([i.lower() for i in ids]))
    fix = "rename them: some file systems take them for one file"
    _refuse([i for i in ids if i.lower() in lower], "ids that differ in case only", where, fix)
    expected = card.splits[split].count
    if len(ids) != expected:
        fix = "check the data root; a part of the dataset is a card of its own, with `subset:`"
        raise SisError(f"{where} has {len(ids):,} pairs, its card expects {expected:,}", where=root, fix=fix)
    if ids != sorted(ids):
        raise SisError(f"{where}: a layout must return sorted ids")
    return entries


def _repeated(names: list[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({n for n in names if n in seen or seen.add(n)})


def _refuse(names: list[str], what: str, where: str, fix: str) -> None:
    if names:
        raise SisError(f"{what}: {first_of(names)}", where=where, fix=fix)


def _write_shard(path: Path, key: str, rows: Iterator[tuple[dict, np.ndarray]], count: int) -> Iterator[np.ndarray]:
    """Write the next `count` rows as one shard; yields the label histogram of each."""
    with atomic_path(path) as temporary, table_writer(temporary, PAIRS, {"key": key}) as append:
        group: list[dict] = []
        for number in range(count):
            row, histogram = next(rows)
            group.append(row)
            if len(group) == ROW_GROUP or number == count - 1:
                append(group)
                group = []
            yield histogram


def _key(card: DatasetCard, split: str, space: LabelSpace, entries: list[Entry]) -> str:
    """What decides the rows of a split: the card without its words, the label table, raw files' sizes."""
    files = [[e.image_id, e.reference_id, *(p.stat().st_size for _, p in sorted(e.files.items()))] for e in entries]
    return stable_hash([VERSION, card.identity(), space.model_dump(), split, files], 16)


def _meta(preparer: Preparer, count: int, key: str) -> dict:
    card, split = preparer.card, preparer.split
    return {
        "dataset": card.name,
        "split": split,
        "count": count,
        "size": card.size,
        "labels": preparer.space.model_dump(),
        "prepare": card.prepare.model_dump(),
        "augmented": preparer.augmented,
        "edges": card.edges,
        "photographs": card.splits[split].photographs,
        "licence": card.licence,
        "subset": card.subset,
        "key": key,
    }


def _shown(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
