# SPDX-License-Identifier: Apache-2.0
"""Training data: a split that gives any of its pairs at any time, fresh cuts included, in constant memory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sis.data.atomic import atomic_path, locked
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, read_manifest, write_manifest
from sis.data.pairs import PairSet
from sis.data.parallel import decoding_threads, threaded_map
from sis.data.policies import Draw
from sis.data.provenance import RunRecord
from sis.data.records import (
    EncodedRecords,
    RawBatch,
    RawRecords,
    Records,
    write_encoded_records,
    write_raw_records,
)
from sis.data.resize import Size
from sis.errors import SisError
from sis.progress import Progress

#: Raised whenever the files of the cache change although the pairs did not.
_FORMAT = 1
_RECORDS, _ENDS = "records.bin", "ends.npy"
#: Batches that are read before their turn.
_AHEAD = 2
#: A pass over the whole split holds at most so many pairs and pixels at a time.
_PASS_PAIRS, _PASS_PIXELS = 64, 2**18

#: A batch that is wanted: positions in the split, and for each what cuts it, or None for the view that is judged.
Request = tuple[Sequence[int], Sequence[Draw] | None]


class TrainingData:
    """All pairs of a split, in the order of `ids`.

    size: (height, width). mirror: the channel that each one-hot channel becomes in a mirrored picture, uint8
    `(width,)`. threads: how many read ahead unless told otherwise; raw records need one, decoding needs more.
    """

    def __init__(
        self, ids: list[str], size: Size, labels: LabelSpace, records: Records, *,
        instances: bool, augmented: bool, release: bool = False,
    ) -> None:  # fmt: skip
        self.ids, self.size, self.labels = ids, size, labels
        self.augmented, self.instances = augmented, instances
        self.threads = decoding_threads() if augmented else 1
        # The released code mirrors left and right without renaming them.
        own = np.arange(labels.width, dtype=np.uint8)
        self.mirror: NDArray[np.uint8] = own if release else labels.mirror_channels()
        self._records = records

    @classmethod
    def open(cls, pairs: PairSet, cache: Path) -> TrainingData:
        """The training data of `pairs`, from what an earlier run left in the folder `cache`, or made there now.

        Raises SisError when a pair is unfit for training or the folder cannot be written.
        """
        manifest = _found(pairs, cache) or _made(pairs, cache)
        path, facts = manifest.folder / _RECORDS, {"instances": pairs.edges, "augmented": pairs.augmented}
        if pairs.augmented:
            ends = np.load(manifest.folder / _ENDS)
            records: Records = EncodedRecords(path, ends, pairs.ids, pairs.policy)
        else:
            records = RawRecords(path, pairs.size, pairs.edges)
        return cls(pairs.ids, pairs.size, pairs.labels, records, release=pairs.policy.release, **facts)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int], draws: Sequence[Draw] | None = None) -> RawBatch:
        """The pairs at `indices` (0-based), each cut by its own of `draws`; without draws as they are judged."""
        batch = self._empty(len(indices))
        self._fill((batch, range(len(indices)), (indices, draws)))
        return batch

    def read_ahead(self, requests: Iterable[Request], threads: int | None = None) -> Generator[RawBatch, None, None]:
        """`batch` of each request, in order; threads read the next two while one is in use.

        The bytes are those of `batch` for every number of threads; 0 reads each when it is asked for. Requests are
        asked for in the caller's thread. Close the iterator to end the threads early.
        """
        threads = self.threads if threads is None else threads
        parts = max(1, threads)

        def tasks() -> Iterator[tuple[RawBatch, range, Request]]:
            for request in requests:
                count = len(request[0])
                batch = self._empty(count)
                for part in range(parts):
                    yield batch, range(part * count // parts, (part + 1) * count // parts), request

        with closing(threaded_map(self._fill, tasks(), threads, _AHEAD * parts)) as filled:
            for number, batch in enumerate(filled, 1):
                if number % parts == 0:
                    yield batch

    def in_order(self) -> Generator[RawBatch, None, None]:
        """Every pair once as it is judged, a bounded number at a time: for statistics of the whole split."""
        step = max(1, min(_PASS_PAIRS, _PASS_PIXELS // (self.size[0] * self.size[1])))
        count = len(self)
        return self.read_ahead((range(i, min(i + step, count)), None) for i in range(0, count, step))

    def _empty(self, count: int) -> RawBatch:
        return RawBatch.empty(count, self.size, self.instances)

    def _fill(self, task: tuple[RawBatch, range, Request]) -> RawBatch:
        batch, positions, (indices, draws) = task
        for position in positions:
            draw = None if draws is None else draws[position]
            self._records.fill(batch, position, int(indices[position]), draw)
        return batch


def _place(pairs: PairSet, cache: Path) -> Path:
    return cache / pairs.manifest.digest[:16]


def _found(pairs: PairSet, cache: Path) -> Manifest | None:
    """The whole cache of these very pairs, every byte checked, if it is there."""
    try:
        manifest = read_manifest(_place(pairs, cache), "decoded")
    except SisError:  # absent, cut short or altered: the pairs themselves are at hand
        return None
    return manifest if manifest.meta == _facts(pairs) else None


def _made(pairs: PairSet, cache: Path) -> Manifest:
    """Make the cache, unless another job made it while this one waited for its turn."""
    with locked(cache):
        found = _found(pairs, cache)
        if found is not None:
            return found
        # Nobody else writes here: whatever there is belongs to killed jobs and to pairs that are no more.
        for other in cache.iterdir():
            if re.fullmatch(r"[0-9a-f]{16}", other.name):
                shutil.rmtree(other, ignore_errors=True)
        return _write(_place(pairs, cache), pairs)


def _write(folder: Path, pairs: PairSet) -> Manifest:
    run, files = RunRecord.start(), [folder / _RECORDS]
    title = f"{'copy' if pairs.augmented else 'decode'} {pairs.dataset}/{pairs.split}"
    with Progress(title, len(pairs), "images") as progress, atomic_path(files[0]) as path:
        if pairs.augmented:
            files.append(folder / _ENDS)
            ends = write_encoded_records(path, pairs, progress.update)
            with atomic_path(files[1]) as beside, beside.open("wb") as file:
                np.save(file, ends)
        else:
            write_raw_records(path, pairs, progress.update)
    return write_manifest(folder, "decoded", files, _facts(pairs), run)


def _facts(pairs: PairSet) -> dict:
    return {
        "dataset": pairs.dataset,
        "split": pairs.split,
        "pairs_digest": pairs.manifest.digest,
        "format": _FORMAT,
        "augmented": pairs.augmented,
        "instances": pairs.edges,
    }
