# SPDX-License-Identifier: Apache-2.0
"""The image set: the one artefact between making images and judging them.

A folder of `shard-NNNN.parquet` (schema IMAGES, rows sorted by image id and sample index) and a manifest. Before it a
method may be anything; after it nobody knows which method it was. pandas, pyarrow and Hugging Face `datasets` read it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from sis.config.base import Name, StrictModel
from sis.data.atomic import atomic_path
from sis.data.images import decode_png, encode_png, pixel_sha256
from sis.data.manifest import Manifest, read_manifest, write_manifest
from sis.data.provenance import RunRecord
from sis.data.schemas import IMAGES
from sis.data.tables import read_table, table_metadata, write_table_file
from sis.errors import SisError, first_of

SHARD_SIZE = 500


class ImageSetMeta(StrictModel):
    """What an image set says about itself, in its manifest."""

    dataset: Name
    split: Name
    run: Name
    run_id: Name
    method: Name
    title: str
    kind: Literal["python", "command", "images", "rule"]
    role: Literal["contestant", "control"]
    labels: Name
    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    samples_per_map: int = Field(ge=1)
    seed: int = Field(description="training seed; 0 for methods that do not train")
    sample_seed: int
    batch_size: int
    device: str
    threads: int
    sampling_seconds: float | None = Field(description="pure sampling time of all shards; null when not measured")


@dataclass(frozen=True)
class ImageBatch:
    """Some images of a set: ids, sample indices and uint8 pixels `(b, h, w, 3)`."""

    image_ids: list[str]
    sample_indices: list[int]
    images: NDArray[np.uint8]


def images_table(keys: list[tuple[str, int]], images: NDArray[np.uint8], seed: int) -> pa.Table:
    """Encode uint8 images `(b, h, w, 3)` called by (image id, sample index) as rows of a shard."""
    rows = []
    for (image_id, sample), image in zip(keys, images, strict=True):
        rows.append(
            {
                "image_id": image_id,
                "sample_index": sample,
                "seed": seed,
                "width": image.shape[1],
                "height": image.shape[0],
                "pixel_sha256": pixel_sha256(image),
                "image": {"bytes": encode_png(image), "path": f"{image_id}_{sample:03d}.png"},
            }
        )
    return pa.Table.from_pylist(rows, schema=IMAGES)


def shard_name(index: int) -> str:
    return f"shard-{index:04d}.parquet"


def write_shard(table: pa.Table, path: Path, metadata: dict) -> None:
    """Write one shard, whole or not at all. `metadata` holds its key, run record and sampling seconds."""
    with atomic_path(path) as temporary:
        write_table_file(table, temporary, IMAGES, metadata)


def shard_is_good(path: Path, key: str) -> bool:
    """Whether a finished shard of this very run lies at `path`, with every pixel as recorded."""
    if not path.is_file():
        return False
    try:
        if table_metadata(path).get("key") != key:
            return False
        for row in read_table(path, IMAGES).to_pylist():
            _decode(row, path)
    except SisError:
        return False
    return True


def finish_image_set(folder: Path, names: list[str], meta: ImageSetMeta, run: RunRecord, extra: dict) -> Manifest:
    """Write the manifest of complete shards, removing shards of an earlier, different cut of the same run.

    Raises SisError when a (image id, sample index) pair occurs twice.
    """
    keys: list[tuple[str, int]] = []
    for name in names:
        table = read_table(folder / name, IMAGES, columns=["image_id", "sample_index"])
        keys += zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True)
    if len(set(keys)) != len(keys):
        twice = sorted({k for k in keys if keys.count(k) > 1})
        raise SisError(f"duplicate images: {first_of(twice)}", where=folder)
    for stale in set(folder.glob("shard-*.parquet")) - {folder / n for n in names}:
        stale.unlink()
    facts = {**meta.model_dump(), "rows": len(keys), **extra}
    return write_manifest(folder, "images", [folder / n for n in names], facts, run)


class ImageSet:
    """A finished image set, opened for reading."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.meta: dict = manifest.meta
        self.run: dict = manifest.run
        self.rows: int = manifest.meta["rows"]
        self._where: dict[tuple[str, int], tuple[Path, int]] = {}

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> ImageSet:
        """Open an image set; with `verify` every file's sha256 is checked first."""
        return cls(read_manifest(Path(folder), "images", verify=verify))

    def iter_batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Yield all images in the order of the shards; raises SisError on any picture that changed."""
        for path in self.manifest.paths():
            _check_schema(path)
            for record in pq.ParquetFile(path).iter_batches(batch_size):
                rows = record.to_pylist()
                images = np.stack([_decode(row, path) for row in rows])
                yield ImageBatch([r["image_id"] for r in rows], [r["sample_index"] for r in rows], images)

    def keys(self) -> list[tuple[str, int]]:
        """All (image id, sample index) pairs, in the order of the shards."""
        self._locate()
        return list(self._where)

    def get(self, image_id: str, sample_index: int) -> NDArray[np.uint8]:
        """One image, uint8 `(h, w, 3)`."""
        self._locate()
        if (image_id, sample_index) not in self._where:
            raise SisError(f"no sample {sample_index} of image {image_id!r}", where=self.manifest.folder)
        path, index = self._where[(image_id, sample_index)]
        return _decode(read_table(path, IMAGES).slice(index, 1).to_pylist()[0], path)

    def read(self, keys: Sequence[tuple[str, int]]) -> Iterator[Callable[[], NDArray[np.uint8]]]:
        """Functions that decode these images, in this order; keys in the order of the shards read each shard once.

        Each raises SisError if the picture changed; they may be called in other threads.
        """
        self._locate()
        opened: Path | None = None
        rows: list[dict] = []
        for key in keys:
            path, index = self._where[key]
            if path != opened:
                opened, rows = path, read_table(path, IMAGES).to_pylist()
            yield functools.partial(_decode, rows[index], path)

    def _locate(self) -> None:
        if self._where:
            return
        for path in self.manifest.paths():
            table = read_table(path, IMAGES, columns=["image_id", "sample_index"])
            pairs = zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True)
            self._where.update({key: (path, i) for i, key in enumerate(pairs)})


def _check_schema(path: Path) -> None:
    """Check a shard's schema without reading its rows."""
    read_table(path, IMAGES, columns=[])


def pixel_hashes(folder: Path) -> dict[tuple[str, int], str]:
    """The recorded pixel hash of every image of a set."""
    hashes: dict[tuple[str, int], str] = {}
    for path in read_manifest(folder, "images").paths():
        table = read_table(path, IMAGES, columns=["image_id", "sample_index", "pixel_sha256"]).to_pylist()
        hashes.update({(r["image_id"], r["sample_index"]): r["pixel_sha256"] for r in table})
    return hashes


def _decode(row: dict, path: Path) -> NDArray[np.uint8]:
    where = f"{path}, image {row['image_id']} sample {row['sample_index']}"
    image = decode_png(row["image"]["bytes"], where=where, mode="RGB")
    if pixel_sha256(image) != row["pixel_sha256"]:
        raise SisError("pixels differ from their recorded hash", where=where, fix="delete the shard and sample again")
    return image
