# SPDX-License-Identifier: Apache-2.0
"""Pair shards: label maps with their real photographs, written once by `prepare`, read by every later stage."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sis.config.cards import Preparation
from sis.data.images import decode_png, encode_png, pixel_sha256
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, read_manifest
from sis.data.pair import Origin, Pair
from sis.data.policies import Policy, policy_of
from sis.data.schemas import PAIRS
from sis.data.tables import read_groups, table_metadata
from sis.errors import SisError, did_you_mean

#: Rows that are read together on random access.
ROW_GROUP = 20
_CACHED_GROUPS = 4


def pair_row(pair: Pair, size: tuple[int, int]) -> dict:
    """Encode a pair as a row of a shard; `size` is the dataset's (height, width)."""
    origin, photo = pair.origin, pair.photograph
    height, width = (pair.label if pair.source_label is None else pair.source_label).shape
    return {
        "image_id": pair.image_id,
        "width": size[1],
        "height": size[0],
        "reference_id": pair.reference_id,
        "pixel_sha256": "" if photo is None else pixel_sha256(photo),
        "label_sha256": pixel_sha256(pair.label),
        "source_width": origin.width if origin else width,
        "source_height": origin.height if origin else height,
        "source_mode": origin.mode if origin else "",
        "source_sha256": origin.sha256 if origin else "" if photo is None else pixel_sha256(photo),
        "image": _picture(photo, pair.image_id),
        "label": _picture(pair.label, pair.image_id),
        "instance": _picture(pair.instance, pair.image_id),
        "source_label": _picture(pair.source_label, pair.image_id),
    }


def _picture(array: NDArray | None, image_id: str) -> dict | None:
    return None if array is None else {"bytes": encode_png(array), "path": f"{image_id}.png"}


class PairSet:
    """Random access to the pairs of one split, in the order of their sorted image ids."""

    def __init__(self, manifest: Manifest) -> None:
        if "prepare" not in manifest.meta:
            raise SisError("pairs of an older release", where=manifest.folder, fix="run prepare again")
        self.manifest = manifest
        self.labels = LabelSpace.model_validate(manifest.meta["labels"])
        height, width = manifest.meta["size"]
        self.size: tuple[int, int] = (height, width)
        self.dataset: str = manifest.meta["dataset"]
        self.split: str = manifest.meta["split"]
        self.policy: Policy = policy_of(Preparation.model_validate(manifest.meta["prepare"]), self.size, self.labels)
        #: Whether pictures are stored larger than `size`, for the training loader to cut from.
        self.augmented: bool = manifest.meta["augmented"]
        #: Whether instance edges are an input of the methods.
        self.edges: bool = manifest.meta["edges"]
        self._shards = manifest.paths()
        self._files = [pq.ParquetFile(p, page_checksum_verification=True) for p in self._shards]
        self.ids: list[str] = []
        self._starts: list[int] = []
        for file in self._files:
            self._starts.append(len(self.ids))
            self.ids += file.read(columns=["image_id"]).column(0).to_pylist()
        self._index = {image_id: i for i, image_id in enumerate(self.ids)}
        self._groups: OrderedDict[tuple[int, int], list[dict]] = OrderedDict()

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> PairSet:
        """Open a prepared split; raises SisError when it is missing, altered or incomplete."""
        return cls(read_manifest(Path(folder), "pairs", verify=verify))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Pair]:
        return (self.get(i) for i in range(len(self)))

    def get(self, index: int) -> Pair:
        """The pair at `index` (0-based) at the dataset's size.

        Raises SisError when its pixels differ from their recorded hash.
        """
        stored = self.stored(index)
        return self.policy.view(stored) if self.augmented else stored

    def stored(self, index: int) -> Pair:
        """The pair at `index` as it is stored: of an augmented split larger than the dataset's size."""
        row, where = self.row(index)
        return decode_row(row, where)

    def row(self, index: int) -> tuple[dict, str]:
        """The encoded row at `index` and the words that name it in an error."""
        shard = bisect_right(self._starts, index) - 1
        group, offset = divmod(index - self._starts[shard], ROW_GROUP)
        row = self._group(shard, group)[offset]
        return row, f"{self._shards[shard]}, image {row['image_id']}"

    def by_id(self, image_id: str) -> Pair:
        """The pair called `image_id`."""
        return self.get(self.place(image_id))

    def place(self, image_id: str) -> int:
        """The index of the pair called `image_id`. Raises SisError with the nearest names when there is none."""
        if image_id not in self._index:
            raise SisError(
                f"no image {image_id!r} in {self.dataset}/{self.split}", fix=did_you_mean(image_id, self.ids)
            )
        return self._index[image_id]

    def photograph_of(self, row: dict, where: str) -> NDArray[np.uint8]:
        """The photograph of an encoded row at the dataset's size; reads no file, so threads may call it together."""
        pair = decode_row(row, where)
        return (self.policy.view(pair) if self.augmented else pair).image

    def _group(self, shard: int, group: int) -> list[dict]:
        key = (shard, group)
        if key not in self._groups:
            self._groups[key] = self._files[shard].read_row_group(group).to_pylist()
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def decode_row(row: dict, where: str) -> Pair:
    """Decode a row of a shard. Raises SisError when pixels differ from their recorded hash."""
    photo, label = _decoded(row["image"], where, "RGB"), _decoded(row["label"], where, "L")
    right = label is not None and pixel_sha256(label) == row["label_sha256"]
    if label is None or not right or row["pixel_sha256"] != ("" if photo is None else pixel_sha256(photo)):
        raise SisError("pixels differ from their recorded hash", where=where, fix="run prepare again")
    instance, source = _decoded(row["instance"], where, "I;16"), _decoded(row["source_label"], where, "L")
    origin = Origin(row["source_width"], row["source_height"], row["source_mode"], row["source_sha256"])
    return Pair(row["image_id"], photo, label, instance, row["reference_id"], origin, source)


def _decoded(picture: dict | None, where: str, mode: str) -> NDArray | None:
    return None if picture is None else decode_png(picture["bytes"], where=where, mode=mode)


def label_histogram(pair: Pair) -> NDArray[np.int64]:
    """Pixels of each stored id, `(256,)`."""
    return np.bincount(pair.label.ravel(), minlength=256)


def good_shard(path: Path, key: str) -> list[NDArray[np.int64]] | None:
    """The label histograms of a finished shard of this very preparation; None if it is absent, other or damaged."""
    if not path.is_file():
        return None
    try:
        if table_metadata(path).get("key") != key:
            return None
        return [label_histogram(decode_row(row, str(path))) for rows in read_groups(path, PAIRS) for row in rows]
    except SisError:
        return None
