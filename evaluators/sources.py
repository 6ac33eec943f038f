# SPDX-License-Identifier: Apache-2.0
"""What can be measured: an image set over the label maps it was made from, or the real images of a split.

A source is cut into windows of neighbouring label maps, always the same ones whatever files it was cut into, so that
finished windows of an interrupted measurement are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sis.config.protocols import ProtocolCard
from sis.data.image_set import ImageSet
from sis.data.images import decode_png, pixel_sha256
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.parallel import decoding_threads, threaded_map
from sis.data.schemas import IMAGES, PAIRS
from sis.data.tables import read_table
from sis.errors import SisError, first_of

#: Columns that say what a pair shows.
PAIR_CONTENT = ["image_id", "pixel_sha256", "label_sha256"]
#: Images of a window, about.
WINDOW = 500
#: Pictures that are decoded ahead of the networks.
_AHEAD = 32

Key = tuple[str, int]


@dataclass(frozen=True)
class Window:
    """Some neighbouring label maps: their images' keys in order, and the hash of all that they show."""

    index: int
    keys: list[Key]
    digest: str


@dataclass(frozen=True)
class Companions:
    """Pairs that some metrics need beside the images: full-size label maps, photographs whose style was asked for.

    Pairs whose policy resized them have kept their label maps at full size, too, so `labels` may be the very pairs that
    the images were made from.
    """

    labels: PairSet | None = None
    styles: PairSet | None = None


NO_COMPANIONS = Companions()


@dataclass(frozen=True)
class Source:
    """A checked collection of images with their label maps.

    kind: "images" or "reference"; digest: content hash of the images; pairs_sha256: of the pairs; maps: number of
    label maps; samples: images of each; rows: images in all; meta: the image set's own facts.
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
    windows: list[Window]
    pairs: PairSet
    companions: Companions
    decoders: Callable[[Sequence[Key]], Iterator[Callable[[], NDArray[np.uint8]]]] = field(repr=False)

    def images(self, keys: Sequence[Key]) -> Iterator[NDArray[np.uint8]]:
        """Decode these images, in this order, each once. Raises SisError for one that is damaged or of another size."""
        decoded = threaded_map(lambda decode: decode(), self.decoders(keys), decoding_threads(), _AHEAD)
        for key, image in zip(keys, decoded, strict=True):
            if image.shape[:2] != self.size:
                raise SisError(f"image {key[0]}#{key[1]} is of {image.shape[:2]}, its label map of {self.size}")
            yield image

    def label(self, image_id: str, full: bool) -> NDArray[np.uint8]:
        """The label map of an image, as prepared or at full size, uint8 `(h, w)`: full sizes may differ in a set."""
        pairs = self.companions.labels if full else self.pairs
        if pairs is None:
            fix = "say `labels: source` in the protocol, or name a dataset with full label maps there"
            raise SisError("a segmenter compares with label maps at full size, and none are given", fix=fix)
        pair = pairs.by_id(image_id)
        label = pair.source_label if full and pair.source_label is not None else pair.label
        # Ids that the table does not know would count as void, and make every score better.
        pairs.labels.check(label, f"{pairs.manifest.folder}, image {image_id}")
        return label

    def style(self, image_id: str) -> NDArray[np.uint8]:
        """The photograph whose style was asked for, uint8 RGB `(h, w, 3)`. Raises SisError where there is none."""
        wanted = self.pairs.by_id(image_id).reference_id
        if not wanted or self.companions.styles is None:
            raise SisError(f"label map {image_id!r} has no photograph whose style is asked for")
        photograph = self.companions.styles.by_id(wanted).photograph
        if photograph is None:
            raise SisError(f"the style reference {wanted!r} of {image_id!r} has no photograph")
        return photograph


def pairs_sha256(pairs: PairSet, count: int | None = None) -> str:
    """One hash of what the first `count` pairs show: stored pixels, and how they come to size if they are larger."""
    content = content_sha256(pairs.manifest, PAIRS, PAIR_CONTENT, count)
    how = [pairs.manifest.meta["prepare"], list(pairs.size)]
    return stable_hash([content, *how], 64) if pairs.augmented else content


def full_labels_sha256(pairs: PairSet) -> str:
    """One hash of ids and label maps at full size; equal wherever these are equal, whatever size they were prepared to.

    A label map that was never resized has its hash in the row; others are decoded.
    """
    columns = ["image_id", "label_sha256", "source_label"]
    rows = (row for path in pairs.manifest.paths() for row in read_table(path, PAIRS, columns).to_pylist())
    return stable_hash(sorted(threaded_map(_full_label, rows, decoding_threads(), _AHEAD)), 64)


def _full_label(row: dict[str, Any]) -> tuple[str, str]:
    """Id and pixel hash of a row's label map at full size."""
    name, picture = row["image_id"], row["source_label"]
    if picture is None:
        return name, row["label_sha256"]
    return name, pixel_sha256(decode_png(picture["bytes"], where=f"full label map of {name}", mode="L"))


def content_sha256(manifest: Manifest, schema: pa.Schema, columns: list[str], count: int | None = None) -> str:
    """One hash of ids and pixel hashes (the first `count` rows by id), however the files were written or cut."""
    return stable_hash(_content(manifest, schema, columns)[:count], 64)


def _content(manifest: Manifest, schema: pa.Schema, columns: list[str]) -> list[tuple]:
    tables = [read_table(path, schema, columns=columns) for path in manifest.paths()]
    return sorted(zip(*(c.to_pylist() for c in pa.concat_tables(tables).columns), strict=True))


def open_images(
    images_folder: Path, pairs_folder: Path, card: ProtocolCard, companions: Companions = NO_COMPANIONS
) -> Source:
    """Open a generated image set. Raises SisError unless it is complete and fits protocol and label maps."""
    images, pairs = ImageSet.open(images_folder), PairSet.open(pairs_folder)
    _check_pairs(pairs, card, card.split, pairs_folder)
    _check_meta(images, pairs, card, images_folder)
    _check_complete(images, pairs, images_folder)
    _check_full_labels(companions.labels, pairs)
    columns = ["image_id", "sample_index", "pixel_sha256"]
    shown = {(name, k): sha256 for name, k, sha256 in _content(images.manifest, IMAGES, columns)}
    return Source(
        kind="images",
        digest=content_sha256(images.manifest, IMAGES, columns),
        pairs_sha256=pairs_sha256(pairs),
        maps=len(pairs),
        samples=images.meta["samples_per_map"],
        rows=images.rows,
        size=pairs.size,
        labels=pairs.labels,
        meta=images.meta,
        windows=_windows(shown, pairs),
        pairs=pairs,
        companions=companions,
        decoders=images.read,
    )


def open_reference(pairs_folder: Path, card: ProtocolCard) -> Source:
    """Open the real images that the protocol compares with. Raises SisError when there are too few."""
    pairs = PairSet.open(pairs_folder)
    _check_pairs(pairs, card, card.reference.split, pairs_folder)
    count = card.reference.count or len(pairs)
    if count > len(pairs):
        raise SisError(f"the protocol asks for {count} real images, the split has {len(pairs)}", where=pairs_folder)
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
        windows=_windows({(name, 0): "" for name in sorted(pairs.ids)[:count]}, pairs),
        pairs=pairs,
        companions=NO_COMPANIONS,
        decoders=lambda keys: _photographs(pairs, keys),
    )


def _photographs(pairs: PairSet, keys: Sequence[Key]) -> Iterator[Callable[[], NDArray[np.uint8]]]:
    """Functions that decode photographs; rows are read here, in one thread, as Parquet files demand."""
    for name, _ in keys:
        row, where = pairs.row(pairs.place(name))
        yield functools.partial(pairs.photograph_of, row, where)


def _windows(shown: dict[Key, str], pairs: PairSet) -> list[Window]:
    """Cut label maps in the order of their ids; `shown` has the pixel hash of each image."""
    content = {row[0]: list(row[1:]) for row in _content(pairs.manifest, PAIRS, PAIR_CONTENT)}
    how = [pairs.manifest.meta["prepare"], list(pairs.size)] if pairs.augmented else []
    samples = max(k for _, k in shown) + 1
    maps, step = sorted({name for name, _ in shown}), max(1, WINDOW // samples)
    windows = []
    for index, start in enumerate(range(0, len(maps), step)):
        keys = [(name, k) for name in maps[start : start + step] for k in range(samples)]
        made_of = [[name, k, shown[name, k], *content[name]] for name, k in keys]
        windows.append(Window(index, keys, stable_hash([made_of, *how], 64)))
    return windows


def _check_pairs(pairs: PairSet, card: ProtocolCard, split: str, where: Path) -> None:
    if (pairs.dataset, pairs.split) != (card.dataset, split):
        raise SisError(
            f"pairs of {pairs.dataset}/{pairs.split}, protocol {card.name!r} asks for {card.dataset}/{split}",
            where=where,
        )


def _check_full_labels(full: PairSet | None, pairs: PairSet) -> None:
    """Label maps at full size are of the same ids and of the same table."""
    if full is None:
        return
    missing = sorted(set(pairs.ids) - set(full.ids))
    if missing:
        raise SisError(
            f"{len(missing)} label maps have none at full size: {first_of(missing)}", where=full.manifest.folder
        )
    if full.labels != pairs.labels:
        raise SisError(
            f"label maps at full size are of table {full.labels.name!r}, the others of {pairs.labels.name!r}",
            where=full.manifest.folder,
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
