# SPDX-License-Identifier: Apache-2.0
"""Training records: one file for a split, read by offset from any thread, so that no page of it stays in memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sis.data.images import decode_png
from sis.data.pair import Pair
from sis.data.pairs import PairSet, decode_row
from sis.data.parallel import decoding_threads, threaded_map
from sis.data.policies import Draw, Policy
from sis.data.resize import Size
from sis.errors import SisError

Value = TypeVar("Value")

#: Pairs that are decoded before their turn to be written, for each thread.
_AHEAD = 4


@dataclass(frozen=True)
class RawBatch:
    """Pairs as bytes: images uint8 `(b, h, w, 3)`; labels uint8 `(b, h, w)`, one-hot channels (void last).

    instances: uint16 `(b, h, w)`, None where instance edges are no input of the methods.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint16] | None

    @classmethod
    def empty(cls, count: int, size: Size, instances: bool) -> RawBatch:
        """Room for `count` pairs of `size` (height, width)."""
        maps = np.empty((count, *size), np.uint16) if instances else None
        return cls(np.empty((count, *size, 3), np.uint8), np.empty((count, *size), np.uint8), maps)


class Records(Protocol):
    """Where training data come from."""

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        """Put pair `index` at `position` of `batch`; `draw` cuts it anew where the split is augmented."""


class RawRecords:
    """Pixels, channels and instances of fixed size: nothing is decoded."""

    def __init__(self, path: Path, size: Size, instances: bool) -> None:
        self._file, self._path = _opened(self, path), path
        self._bytes = record_bytes(size, instances)

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        """Put pair `index` at `position`; there is nothing to cut."""
        parts = [batch.images[position].data, batch.labels[position].data]
        if batch.instances is not None:
            parts.append(batch.instances[position].data)
        if os.preadv(self._file, parts, index * self._bytes) != self._bytes:
            raise _shortened(self._path)


class EncodedRecords:
    """The PNGs of larger pictures, decoded and cut each time they are read.

    ends: int64, where the pictures of all records end, one after another, after a first 0.
    """

    def __init__(self, path: Path, ends: NDArray[np.int64], ids: list[str], policy: Policy) -> None:
        self._file, self._path = _opened(self, path), path
        self._ends, self._ids, self._policy = ends, ids, policy

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        """Put pair `index` at `position`: cut by `draw`, or without it as it is judged."""
        pair = self._pair(index, batch.instances is not None)
        pair = self._policy.view(pair) if draw is None else self._policy.augment(pair, draw)
        batch.images[position] = pair.image
        batch.labels[position] = self._policy.channels(pair)
        if batch.instances is not None and pair.instance is not None:
            batch.instances[position] = pair.instance

    def _pair(self, index: int, instances: bool) -> Pair:
        parts = 2 + instances
        ends = self._ends[index * parts : (index + 1) * parts + 1].tolist()
        data = os.pread(self._file, ends[-1] - ends[0], ends[0])
        if len(data) != ends[-1] - ends[0]:
            raise _shortened(self._path)
        pngs = [data[a - ends[0] : b - ends[0]] for a, b in pairwise(ends)]
        where = f"{self._path}, image {self._ids[index]}"
        image, label = decode_png(pngs[0], where=where, mode="RGB"), decode_png(pngs[1], where=where, mode="L")
        instance = decode_png(pngs[2], where=where, mode="I;16") if instances else None
        return Pair(self._ids[index], image, label, instance)


def record_bytes(size: Size, instances: bool) -> int:
    """Bytes of one raw record."""
    return size[0] * size[1] * (6 if instances else 4)


def write_raw_records(path: Path, pairs: PairSet, done: Callable[[int], None]) -> None:
    """Decode every pair into raw records at `path`; `done(1)` is called after each."""
    threads = decoding_threads()
    rows = (pairs.row(i) for i in range(len(pairs)))
    decoded = threaded_map(lambda row: decode_row(*row), rows, threads, _AHEAD * threads)
    with path.open("wb") as file, closing(decoded):
        _reserve(file, len(pairs) * record_bytes(pairs.size, pairs.edges))
        for pair in decoded:
            parts: list[NDArray] = [pair.image, pairs.policy.channels(pair)]
            if pairs.edges:
                parts.append(_present(pair.instance, "instance", pair.image_id))
            for part in parts:
                file.write(part.tobytes())
            done(1)


def write_encoded_records(path: Path, pairs: PairSet, done: Callable[[int], None]) -> NDArray[np.int64]:
    """Copy the PNGs of every pair to `path`; returns where each ends (see EncodedRecords)."""
    names = ("image", "label", "instance") if pairs.edges else ("image", "label")
    lengths = np.zeros(len(pairs) * len(names) + 1, np.int64)
    with path.open("wb") as file:
        _reserve(file, _stored_bytes(pairs.manifest.paths(), names))
        for index in range(len(pairs)):
            row, where = pairs.row(index)
            for part, name in enumerate(names):
                lengths[index * len(names) + part + 1] = file.write(_present(row[name], name, where)["bytes"])
            done(1)
        file.truncate()
    return np.cumsum(lengths)


def _present(value: Value | None, name: str, where: str) -> Value:
    if value is None:
        raise SisError(f"training needs this pair's {name}, there is none", where=where)
    return value


def _stored_bytes(shards: list[Path], names: Iterable[str]) -> int:
    """About how many bytes the PNGs of some columns have, by the footers of the shards."""
    wanted, total = {f"{name}.bytes" for name in names}, 0
    for shard in shards:
        footer = pq.read_metadata(shard)
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            columns = (group.column(i) for i in range(group.num_columns))
            total += sum(c.total_uncompressed_size for c in columns if c.path_in_schema in wanted)
    return total


def _reserve(file: BinaryIO, size: int) -> None:
    """Take the disk space now: a full disk is known before an hour of decoding, not after it."""
    os.posix_fallocate(file.fileno(), 0, size)


def _opened(owner: object, path: Path) -> int:
    """A descriptor to read `path` by; it is closed when its owner is dropped."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SisError(f"cannot read the training data: {error.strerror}", where=path, fix="run it again") from error
    weakref.finalize(owner, os.close, file)
    return file


def _shortened(path: Path) -> SisError:
    return SisError("the training data were shortened while in use", where=path, fix="run the same command again")
