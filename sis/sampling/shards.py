# SPDX-License-Identifier: Apache-2.0
"""One shard of an image set: batch by batch into a work area, then whole under its final name.

A finished batch is never computed again: it lies in `work/` beside the shards until its shard is complete. The work
area is no declared output of any rule, so the workflow engine does not delete it when a job is repeated.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sis.data.atomic import only_writer
from sis.data.image_set import images_table, shard_is_good, shard_name, write_shard
from sis.data.provenance import RunRecord
from sis.data.schemas import IMAGES
from sis.data.tables import read_table, table_metadata, write_table
from sis.errors import SisError
from sis.notice import NEVER, Notice
from sis.progress import Progress

#: (image id, sample index) of one image.
Key = tuple[str, int]
#: Makes the images of some keys: uint8 `(b, h, w, 3)`.
MakeBatch = Callable[[list[Key]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Cut:
    """One shard's share of an image set."""

    index: int
    keys: list[Key]
    key: str

    @property
    def name(self) -> str:
        return shard_name(self.index)


def all_keys(ids: list[str], samples_per_map: int) -> list[Key]:
    """Every image of a set, in its canonical order."""
    return [(image_id, sample) for image_id in sorted(ids) for sample in range(samples_per_map)]


def cut(keys: list[Key], shard_size: int, shards: int, key: str) -> list[Cut]:
    """Cut a set into shards of `shard_size` images, or into `shards` equal ones if that is not 0."""
    count = shards or max(1, -(-len(keys) // shard_size))
    if not 1 <= count <= len(keys):
        raise SisError(f"cannot cut {len(keys)} images into {count} shards", fix=f"ask for 1 to {len(keys)} shards")
    bounds = [round(i * len(keys) / count) for i in range(count + 1)] if shards else range(0, len(keys), shard_size)
    starts = list(bounds)[:count]
    ends = [*starts[1:], len(keys)]
    return [Cut(i, keys[a:b], f"{key}:{a}-{b}") for i, (a, b) in enumerate(zip(starts, ends, strict=True))]


@dataclass(frozen=True)
class Place:
    """Where the shards of a set lie, the size (height, width) of their pictures, and the run that makes them."""

    folder: Path
    size: tuple[int, int]
    run: RunRecord


def sample_shard(
    part: Cut, place: Place, batch_size: int, make: MakeBatch, seed: int, progress: Progress, notice: Notice = NEVER
) -> None:
    """Make one shard, or keep it if it is there and whole. A killed run repeats at most one batch.

    Raises SisError when another process is at work on the same shard, and Stopped after a batch when told to stop.
    """
    folder = place.folder
    path = folder / part.name
    if shard_is_good(path, part.key):
        progress.update(len(part.keys))
        return
    work = folder / "work" / path.stem
    with only_writer(work.with_name(f"{work.name}.lock"), "this shard"):
        work.mkdir(exist_ok=True)
        tables, seconds = [], 0.0
        for number, start in enumerate(range(0, len(part.keys), batch_size)):
            keys = part.keys[start : start + batch_size]
            table, spent = _batch(work / f"batch-{number:05d}.parquet", keys, part.key, make, place.size, seed)
            tables.append(table)
            seconds += spent
            progress.update(len(keys))
            if start + batch_size < len(part.keys):
                notice.obey()
        metadata = {"key": part.key, "sampling_seconds": seconds, "run": place.run.finish()}
        write_shard(pa.concat_tables(tables), path, metadata)
        shutil.rmtree(work)
    notice.obey()


def shard_seconds(path: Path) -> float | None:
    """Pure sampling time of a shard."""
    return table_metadata(path).get("sampling_seconds")


def _batch(
    path: Path, keys: list[Key], key: str, make: MakeBatch, size: tuple[int, int], seed: int
) -> tuple[pa.Table, float]:
    stored = _stored(path, key)
    if stored is not None:
        return stored
    began = time.perf_counter()
    images = make(keys)
    seconds = time.perf_counter() - began
    if images.dtype != np.uint8 or images.shape != (len(keys), *size, 3):
        raise SisError(f"the method returned {images.dtype} {images.shape}, expected uint8 {(len(keys), *size, 3)}")
    table = images_table(keys, images, seed)
    write_table(table, path, IMAGES, {"key": key, "sampling_seconds": seconds})
    return table, seconds


def _stored(path: Path, key: str) -> tuple[pa.Table, float] | None:
    """A finished batch of an earlier attempt at this very shard, if it is whole."""
    if not shard_is_good(path, key):
        return None
    return read_table(path, IMAGES).replace_schema_metadata(None), float(table_metadata(path)["sampling_seconds"])
