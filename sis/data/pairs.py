# SPDX-License-Identifier: Apache-2.0
"""Pair shards: label maps with their real photographs, written once by `prepare`, read by every later stage."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sis.data.images import decode_png, encode_png, pixel_sha256
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, read_manifest
from sis.data.schemas import PAIRS
from sis.data.tables import read_table, table_metadata
from sis.errors import SisError, did_you_mean

#: Rows that are decoded together on random access.
ROW_GROUP = 50
_CACHED_GROUPS = 8


@dataclass(frozen=True)
class Pair:
    """A label map and its photograph.

    image: uint8 `(h, w, 3)`; label: uint8 `(h, w)` stored ids; instance: uint16 `(h, w)`, 0 for stuff;
    reference_id: image id (in the train split) of a photograph of the same style.
    """

    image_id: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    reference_id: str


def pairs_table(pairs: list[Pair]) -> pa.Table:
    """Encode pairs as the rows of a shard."""
    return pa.Table.from_pylist([_row(pair) for pair in pairs], schema=PAIRS)


def _row(pair: Pair) -> dict:
    height, width = pair.label.shape
    return {
        "image_id": pair.image_id,
        "width": width,
        "height": height,
        "reference_id": pair.reference_id,
        "pixel_sha256": pixel_sha256(pair.image),
        "label_sha256": pixel_sha256(pair.label),
        "image": {"bytes": encode_png(pair.image), "path": f"{pair.image_id}.png"},
        "label": {"bytes": encode_png(pair.label), "path": f"{pair.image_id}.png"},
        "instance": {"bytes": encode_png(pair.instance), "path": f"{pair.image_id}.png"},
    }


class PairSet:
    """Random access to the pairs of one split, in the order of their sorted image ids."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.labels = LabelSpace.model_validate(manifest.meta["labels"])
        height, width = manifest.meta["size"]
        self.size: tuple[int, int] = (height, width)
        self.dataset: str = manifest.meta["dataset"]
        self.split: str = manifest.meta["split"]
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
        """The pair at `index` (0-based). Raises SisError when its pixels differ from their recorded hash."""
        shard = bisect_right(self._starts, index) - 1
        group, offset = divmod(index - self._starts[shard], ROW_GROUP)
        return _pair(self._group(shard, group)[offset], self._shards[shard])

    def by_id(self, image_id: str) -> Pair:
        """The pair called `image_id`."""
        if image_id not in self._index:
            raise SisError(
                f"no image {image_id!r} in {self.dataset}/{self.split}", fix=did_you_mean(image_id, self.ids)
            )
        return self.get(self._index[image_id])

    def _group(self, shard: int, group: int) -> list[dict]:
        key = (shard, group)
        if key not in self._groups:
            self._groups[key] = self._files[shard].read_row_group(group).to_pylist()
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


def _pair(row: dict, path: Path) -> Pair:
    where = f"{path}, image {row['image_id']}"
    image = decode_png(row["image"]["bytes"], where=where, mode="RGB")
    label = decode_png(row["label"]["bytes"], where=where, mode="L")
    if pixel_sha256(image) != row["pixel_sha256"] or pixel_sha256(label) != row["label_sha256"]:
        raise SisError("pixels differ from their recorded hash", where=where, fix="run prepare again")
    instance = decode_png(row["instance"]["bytes"], where=where, mode="I;16")
    return Pair(row["image_id"], image, label, instance, row["reference_id"])


def shard_is_good(path: Path, key: str) -> bool:
    """Whether a finished shard of this very preparation lies at `path`, with every pixel as recorded."""
    if not path.is_file():
        return False
    try:
        if shard_key(path) != key:
            return False
        for row in read_table(path, PAIRS).to_pylist():
            _pair(row, path)
    except SisError:
        return False
    return True


def shard_key(path: Path) -> str:
    """The preparation key stored in a shard, for resuming."""
    return str(table_metadata(path).get("key", ""))
