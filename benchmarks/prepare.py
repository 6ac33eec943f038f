# SPDX-License-Identifier: Apache-2.0
"""Preparation and the training loader against plain one-process code that does the same work and checks nothing.

Run: python benchmarks/prepare.py [--photographs N] [--pairs N] [--size S] [--rounds R]     (about five minutes)

prepare: photographs of 2S x 1.5S (JPEG and PNG, layout `folder`) become S x S pairs. Its peer opens each file with
Pillow, calls the same policy, encodes PNGs and writes Parquet. loader: batches of S x S pairs in random order. Its peer
reads the same shards row group by row group, in order, and decodes with Pillow; where pictures are cut anew, both call
the same policy with the same draws. Every pixel of both sides is compared. Rounds are interleaved, each in a process of
its own for `prepare`; a ratio is the median of the rounds' ratios. Memory is resident memory, anonymous and file
pages, sampled.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from sis.config.cards import DatasetCard
from sis.config.files import label_space
from sis.data.image_set import SHARD_SIZE, shard_name
from sis.data.images import encode_png
from sis.data.manifest import write_manifest
from sis.data.pair import Pair
from sis.data.pairs import ROW_GROUP, PairSet, pair_row
from sis.data.policies import Draw, policy_of
from sis.data.prepare import prepare
from sis.data.provenance import RunRecord
from sis.data.scenes import make_scene
from sis.data.schemas import IMAGE, PAIRS
from sis.data.tables import table_writer
from sis.data.training_data import TrainingData

BATCH = 32
#: Pictures that differ; a prime, so that no batch size divides it.
DISTINCT = 61
#: Images that are read in one round of the loader.
ROUND = 512
MIB = 2**20


def card(size: int, count: int, policy: str) -> DatasetCard:
    splits = {"train": {"count": count}, "val": {"count": count}}
    facts = {"name": "bench", "title": "bench", "layout": "folder", "labels": "scenes", "size": [size, size]}
    more = {"prepare": {"policy": policy}, "splits": splits, "licence": "none", "source": "drawn"}
    return DatasetCard.model_validate(facts | more)


def memory(pid: int | str = "self") -> int:
    """Resident bytes of a process, anonymous and of files; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))


def workers_of(pid: int) -> list[int]:
    """The worker processes below a process, and the server that forks them; `git` and the like do not count."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = [int(word) for word in path.read_text().split()]
            found += [p for p in below if b"multiprocessing" in Path(f"/proc/{p}/cmdline").read_bytes()]
        except OSError:  # gone meanwhile
            continue
        found += [p for child in below for p in workers_of(child)]
    return found


class Watch:
    """Samples the peak of some measure while a block runs."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self.measure, self.peak, self._stop = measure, measure(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self.measure())

    def _sample(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, self.measure())


# --- prepare ---------------------------------------------------------------------------------------------------------


def write_photographs(root: Path, count: int, size: int) -> None:
    """`count` photographs of 2 x 1.5 times `size`, every fourth a PNG, with their label maps."""
    height, width = size * 3 // 2, size * 2
    scenes = [make_scene(0, "train", i, (height, width)) for i in range(min(count, DISTINCT))]
    for kind in ("images", "labels"):
        (root / "val" / kind).mkdir(parents=True)
    for i in range(count):
        scene, shift = scenes[i % len(scenes)], 7 * (i // len(scenes))
        picture = Image.fromarray(np.roll(scene.image, shift, 1))
        if i % 4 == 3:
            picture.save(root / "val/images" / f"{i:06d}.png", compress_level=1)
        else:
            picture.save(root / "val/images" / f"{i:06d}.jpg", quality=92)
        Image.fromarray(np.roll(scene.label, shift, 1)).save(root / "val/labels" / f"{i:06d}.png")


def plain_prepare(made: DatasetCard, root: Path, out: Path) -> None:
    """The peer: open, resize, encode, write; no check, no hash, one process."""
    policy = policy_of(made.prepare, (made.size[0], made.size[1]), label_space(made.labels))
    parts = ("image", "label", "source_label")
    schema, rows = pa.schema([("image_id", pa.string()), *((part, IMAGE) for part in parts)]), []
    out.mkdir(parents=True)
    paths = sorted((root / "val/images").iterdir())
    with pq.ParquetWriter(out / "plain.parquet", schema, compression="zstd") as writer:
        for number, path in enumerate(paths, 1):
            with Image.open(path) as photo, Image.open(root / "val/labels" / f"{path.stem}.png") as label:
                pair = policy.view(Pair(path.stem, np.asarray(photo.convert("RGB")), np.asarray(label)))
            pictures = [pair.image, pair.label, pair.source_label]
            encoded = [None if p is None else {"bytes": encode_png(p)} for p in pictures]
            rows.append({"image_id": path.stem, **dict(zip(parts, encoded, strict=True))})
            if len(rows) == ROW_GROUP or number == len(paths):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []


def prepare_job(kind: str, root: Path, out: Path, count: int, size: int) -> dict:
    """One round of preparation; kind: "plain" or the number of workers."""
    made, began = card(size, count, "sdm"), time.perf_counter()
    if kind == "plain":
        plain_prepare(made, root, out)
    else:
        prepare(made, "val", root, out, int(kind))
    return {"seconds": time.perf_counter() - began}


def in_process_of_its_own(job: str, arguments: list) -> dict:
    """Run a job of this file; adds the peak memory of the process and of its workers."""
    command = [sys.executable, __file__, "--job", json.dumps([job, *arguments], default=str)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process,
        Watch(partial(memory, process.pid)) as own,
        Watch(lambda: sum(memory(p) for p in workers_of(process.pid))) as others,
    ):
        answer, _ = process.communicate()
    assert process.returncode == 0, f"{job} ended with {process.returncode}"
    return {**json.loads(answer), "memory": own.peak, "workers": others.peak}


def assert_equal_pairs(plain: Path, prepared: Path) -> None:
    """Stored pixels and ids are those of the plain loop."""
    pairs, rows = PairSet.open(prepared), pq.read_table(plain / "plain.parquet").to_pylist()
    assert pairs.ids == [row["image_id"] for row in rows]
    for row, pair in zip(rows, pairs, strict=True):
        assert np.array_equal(pil_array(row["image"]), pair.image), f"image {pair.image_id} differs"
        assert np.array_equal(pil_array(row["label"]), pair.label), f"label map {pair.image_id} differs"
        assert np.array_equal(pil_array(row["source_label"]), pair.source_label), f"source of {pair.image_id} differs"


def pil_array(picture: dict) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(picture["bytes"])) as opened:
        return np.asarray(opened)


def measure_prepare(folder: Path, count: int, size: int, rounds: int) -> dict[str, list[dict]]:
    """`rounds` results of each kind, interleaved."""
    write_photographs(folder / "raw", count, size)
    results: dict[str, list[dict]] = {"plain": [], "1": [], "2": []}
    for number in range(rounds):
        for kind, found in results.items():
            out = folder / f"{kind}-{number}"
            found.append(in_process_of_its_own("prepare", [kind, folder / "raw", out, count, size]))
        for kind in ("1", "2"):
            assert_equal_pairs(folder / f"plain-{number}", folder / f"{kind}-{number}")
    return results


def show_prepare(results: dict[str, list[dict]], count: int) -> None:
    seconds = {kind: [r["seconds"] for r in found] for kind, found in results.items()}
    print(f"prepare, {count:,} photographs        images/s   x plain   x one process   MiB parent   MiB workers")
    names = {"plain": "plain loop, no checks", "1": "sis prepare --workers 1", "2": "sis prepare --workers 2"}
    for kind, name in names.items():
        rate = count / statistics.median(seconds[kind])
        plain, one = (faster(seconds[peer], seconds[kind]) for peer in ("plain", "1"))
        own, others = (max(r[k] for r in results[kind]) / MIB for k in ("memory", "workers"))
        print(f"{name:32} {rate:9.1f} {plain:9.2f} {one:15.2f} {own:12.0f} {others:13.0f}")


def faster(peer: list[float], ours: list[float]) -> float:
    """How many times faster than its peer, by the median of the rounds: both sides of a round met the same load."""
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


# --- loader ----------------------------------------------------------------------------------------------------------


def write_pairs(folder: Path, count: int, size: int, augmented: bool) -> None:
    """`count` pairs of the split train; those to be cut are stored 1.5 times as wide and 1.125 times as high."""
    stored = (size * 9 // 8, size * 3 // 2) if augmented else (size, size)
    made = card(size, count, "sdm" if augmented else "exact")
    scenes = [make_scene(0, "train", i, stored) for i in range(DISTINCT)]
    rows = [pair_row(Pair(str(i), s.image, s.label), (size, size)) for i, s in enumerate(scenes)]
    names = [folder / shard_name(i) for i in range(-(-count // SHARD_SIZE))]
    folder.mkdir(parents=True)
    for number, path in enumerate(names):
        ids = range(number * SHARD_SIZE, min(count, (number + 1) * SHARD_SIZE))
        with table_writer(path, PAIRS, {"key": "bench"}) as append:
            for start in range(0, len(ids), ROW_GROUP):
                append([{**rows[i % DISTINCT], "image_id": f"{i:08d}"} for i in ids[start : start + ROW_GROUP]])
    labels = label_space(made.labels).model_dump()
    meta = {"dataset": "bench", "split": "train", "count": count, "size": made.size, "labels": labels, "edges": False}
    meta |= {"prepare": made.prepare.model_dump(), "augmented": augmented, "photographs": True}
    write_manifest(folder, "pairs", names, meta, RunRecord.start())


def drawn(index: int) -> Draw:
    """The same cut for both sides."""
    return lambda purpose, low, high: low + zlib.crc32(f"{index} {purpose}".encode()) % (high - low)


def plain_reading(pairs: PairSet, start: int, count: int) -> Iterator[tuple[NDArray, NDArray]]:
    """The peer: row group after row group, Pillow, the same policy; no check, one process. `start`: of a row group."""
    for shard, path in enumerate(pairs.manifest.paths()):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            first = shard * SHARD_SIZE + group * ROW_GROUP
            if not start <= first < start + count:
                continue
            rows = file.read_row_group(group, columns=["image_id", "image", "label"]).to_pylist()
            for index, row in enumerate(rows[: start + count - first], first):
                pair = Pair(row["image_id"], pil_array(row["image"]), pil_array(row["label"]))
                if pairs.augmented:
                    pair = pairs.policy.augment(pair, drawn(index))
                yield pair.image, pairs.labels.channels(pair.label)


def loader_job(folder: Path, rounds: int) -> dict:
    """Make the cache, read one epoch's share, then time both sides; memory is what grows over the base process."""
    base = memory()
    found: dict = {"base": base}
    with Watch(memory) as watch:
        began = time.perf_counter()
        pairs = PairSet.open(folder / "pairs")
        data = TrainingData.open(pairs, folder / "decoded")
        found["made_seconds"] = time.perf_counter() - began
    found["made_growth"] = watch.peak - base
    del data
    began = time.perf_counter()
    data = TrainingData.open(pairs, folder / "decoded")
    found["open_seconds"] = time.perf_counter() - began
    order = random.Random(0).sample(range(len(data)), len(data))
    share = order if not data.augmented else order[: 4 * ROUND]
    with Watch(memory) as watch:
        for batch in data.read_ahead(requests(data, share)):
            assert len(batch.images)
    found |= {"read_growth": watch.peak - base, "read": len(share), "threads": data.threads}
    sides: dict[str, list[float]] = {"plain": [], "batch": [], "ahead": []}  # seconds an image
    for number in range(rounds):
        count = min(ROUND, len(pairs))
        start = random.Random(number).randrange(0, len(pairs) - count + 1) // ROW_GROUP * ROW_GROUP
        compare(pairs, data, start, count, sides)
    return found | sides


def requests(data: TrainingData, order: list[int]) -> Iterator[tuple[list[int], list[Draw] | None]]:
    for i in range(0, len(order), BATCH):
        part = order[i : i + BATCH]
        yield part, [drawn(index) for index in part] if data.augmented else None


def compare(pairs: PairSet, data: TrainingData, start: int, count: int, sides: dict[str, list[float]]) -> None:
    """One round: the plain reading in order, ours in random order one by one and ahead; all pixels compared."""
    began = time.perf_counter()
    wanted = list(plain_reading(pairs, start, count))
    sides["plain"].append((time.perf_counter() - began) / len(wanted))
    order = random.Random(start).sample(range(start, start + len(wanted)), len(wanted))
    for side in ("batch", "ahead"):
        began, asked = time.perf_counter(), requests(data, order)
        got = list(data.read_ahead(asked) if side == "ahead" else (data.batch(*request) for request in asked))
        sides[side].append((time.perf_counter() - began) / len(wanted))
        images, labels = (np.concatenate([getattr(b, name) for b in got]) for name in ("images", "labels"))
        for index, image, label in zip(order, images, labels, strict=True):
            assert np.array_equal(image, wanted[index - start][0]), f"image {index} differs"
            assert np.array_equal(label, wanted[index - start][1]), f"label map {index} differs"


def show_loader(name: str, found: dict, count: int) -> None:
    print(f"\nloader, {count:,} pairs, {name}")
    sides = {"plain": "plain reading, in order", "batch": "batch by batch, any order"}
    for side, words in (sides | {"ahead": f"read ahead, {found['threads']} threads"}).items():
        rate, ratio = 1 / statistics.median(found[side]), faster(found["plain"], found[side])
        print(f"  {words:30} {rate:9.1f} images/s   {ratio:6.2f} x plain")
    print(f"  made and opened in {found['made_seconds']:.1f} s, opened again (all bytes checked) in", end=" ")
    print(f"{found['open_seconds']:.1f} s")
    grown = [found[k] / MIB for k in ("made_growth", "read_growth")]
    print(f"  memory over the base process ({found['base'] / MIB:.0f} MiB): {grown[0]:.0f} MiB while made,", end=" ")
    print(f"{grown[1]:.0f} MiB while {found['read']:,} images were read")


def measure_loader(folder: Path, count: int, size: int, rounds: int, augmented: bool) -> dict:
    write_pairs(folder / "pairs", count, size, augmented)
    return in_process_of_its_own("loader", [folder, rounds])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=800, help="photographs to prepare (default 800)")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs to load (default 20,000)")
    parser.add_argument("--size", type=int, default=256, help="side of the prepared pictures (default 256)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.job:
        name, *rest = chosen.job
        done = prepare_job(rest[0], Path(rest[1]), Path(rest[2]), *rest[3:]) if name == "prepare" else None
        print(json.dumps(done or loader_job(Path(rest[0]), rest[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = measure_prepare(Path(folder), chosen.photographs, chosen.size, chosen.rounds)
    show_prepare(results, chosen.photographs)
    for name, augmented in (("decoded once", False), ("cut anew each epoch", True)):
        with tempfile.TemporaryDirectory() as folder:
            found = measure_loader(Path(folder), chosen.pairs, chosen.size, chosen.rounds, augmented)
        show_loader(name, found, chosen.pairs)


if __name__ == "__main__":
    main()
