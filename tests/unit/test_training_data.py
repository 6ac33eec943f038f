# SPDX-License-Identifier: Apache-2.0
"""Training data: the pairs' own pixels, cut anew where they should be, the same bytes however they are read."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, label_space
from sis.data import training_data
from sis.data.labels import LabelSpace
from sis.data.layouts import Entry, scenes
from sis.data.manifest import read_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet
from sis.data.policies import Draw
from sis.data.prepare import prepare
from sis.data.records import RawBatch, RawRecords, Records, write_raw_records
from sis.data.scenes import make_scene
from sis.data.training_data import Request, TrainingData
from sis.errors import SisError

SOURCE = (50, 71)


def fields(batch: RawBatch) -> list[NDArray]:
    return [a for a in (batch.images, batch.labels, batch.instances) if a is not None]


def same(one: RawBatch, two: RawBatch) -> bool:
    pairs = zip(fields(one), fields(two), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def cutter(number: int) -> Draw:
    """Some draw of its own for each position."""
    return lambda purpose, low, high: low + (number * 7 + len(purpose)) % (high - low)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("sis-ahead")]


def made(folder: Path, **changes: Any) -> PairSet:
    """Pairs of the split train of scenes_tiny, its card changed."""
    card = DatasetCard.model_validate(dataset_card("scenes_tiny").model_dump() | changes)
    prepare(card, "train", folder, folder / "train")
    return PairSet.open(folder / "train")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    """48 pairs of 32x32 with instances that the methods see."""
    return made(tmp_path_factory.mktemp("plain"), edges=True)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    """12 pairs of 50x71, to be cut to 32x32."""

    def read(card: DatasetCard, entry: Entry) -> Pair:
        scene = make_scene(0, entry.split, int(entry.image_id[-5:]), SOURCE)
        return Pair(entry.image_id, scene.image, scene.label, scene.instance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "read", read)
        splits = {"train": {"count": 12}, "val": {"count": 1}}
        return made(tmp_path_factory.mktemp("larger"), edges=True, prepare={"policy": "sdm"}, splits=splits)


def test_a_split_that_is_not_augmented_is_read_as_it_was_prepared(plain: PairSet, tmp_path: Path) -> None:
    data = TrainingData.open(plain, tmp_path)
    assert data.ids == plain.ids and len(data) == 48 and data.size == (32, 32)
    order = [5, 0, 47, 5]
    batch = data.batch(order)
    assert batch.instances is not None and batch.instances.dtype == np.uint16
    for position, index in enumerate(order):
        pair = plain.get(index)
        assert np.array_equal(batch.images[position], pair.image)
        assert np.array_equal(batch.labels[position], plain.labels.channels(pair.label))
        assert pair.instance is not None and np.array_equal(batch.instances[position], pair.instance)


def test_instances_that_no_method_sees_are_not_stored(plain: PairSet, tiny_pairs: Path, tmp_path: Path) -> None:
    without = PairSet.open(tiny_pairs / "train")
    assert without.get(0).instance is not None and not without.edges
    data = TrainingData.open(without, tmp_path / "without")
    assert data.batch([0, 1]).instances is None
    assert np.array_equal(data.batch([3]).images[0], without.get(3).image)
    TrainingData.open(plain, tmp_path / "with")
    sizes = [next((tmp_path / name).rglob("records.bin")).stat().st_size for name in ("without", "with")]
    assert sizes == [48 * 32 * 32 * 4, 48 * 32 * 32 * 6]


def test_an_augmented_split_shows_its_plain_view_without_draws(larger: PairSet, tmp_path: Path) -> None:
    assert larger.augmented and larger.stored(0).image.shape == (*SOURCE, 3)
    data = TrainingData.open(larger, tmp_path)
    assert data.augmented
    batch = data.batch(range(12))
    for index, pair in enumerate(larger):
        assert pair.image.shape == (32, 32, 3) and np.array_equal(batch.images[index], pair.image)
        assert np.array_equal(batch.labels[index], larger.labels.channels(pair.label))
        assert batch.instances is not None and np.array_equal(batch.instances[index], pair.instance)
    assert batch.instances is not None and batch.instances.max() > 255


def test_an_augmented_split_is_cut_by_its_draws(larger: PairSet, tmp_path: Path) -> None:
    data, order = TrainingData.open(larger, tmp_path), [3, 3, 0, 11]
    batch = data.batch(order, [cutter(k) for k in range(4)])
    for position, index in enumerate(order):
        pair = larger.policy.augment(larger.stored(index), cutter(position))
        assert np.array_equal(batch.images[position], pair.image)
        assert np.array_equal(batch.labels[position], larger.labels.channels(pair.label))
        assert batch.instances is not None and np.array_equal(batch.instances[position], pair.instance)
    assert not np.array_equal(batch.images[0], batch.images[1])


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 7, None])
@pytest.mark.parametrize("kind", ["plain", "larger"])
def test_reading_ahead_gives_the_bytes_of_single_batches(
    kind: str, threads: int | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = TrainingData.open(request.getfixturevalue(kind), tmp_path)
    wanted: list[Request] = [
        ([(k * 5 + j) % 12 for j in range(1 + k % 5)], [cutter(k + j) for j in range(1 + k % 5)] if k % 3 else None)
        for k in range(9)
    ]
    got = list(data.read_ahead(wanted, threads))
    assert len(got) == 9
    assert all(same(batch, data.batch(*wanted[k])) for k, batch in enumerate(got))


class Watched:
    """Records that remember who read them; reading `fault` fails."""

    def __init__(self, fault: int = -1) -> None:
        self.fault, self.readers = fault, set[str]()

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        self.readers.add(threading.current_thread().name)
        if index == self.fault:
            raise SisError("pixels differ", where=f"image {index}")
        batch.images[position] = index


def watched(records: Records, count: int = 100) -> TrainingData:
    ids = [f"{i:03d}" for i in range(count)]
    return TrainingData(ids, (4, 4), label_space("scenes"), records, instances=False, augmented=False)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_two_batches_are_read_ahead(threads: int) -> None:
    asked: list[int] = []

    def requests() -> Iterator[Request]:
        for k in range(30):
            asked.append(k)
            yield [k, k + 1], None

    records = Watched()
    reading = watched(records).read_ahead(requests(), threads)
    for k in range(20):
        assert (next(reading).images[:, 0, 0, 0] == [k, k + 1]).all()
        assert asked[-1] <= k + 3
    assert asked[-1] >= 21 and threading.current_thread().name not in records.readers
    reading.close()


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_fault_surfaces_where_its_batch_is_due_and_ends_the_threads(threads: int) -> None:
    data, seen = watched(Watched(fault=13)), []
    with pytest.raises(SisError, match=r"pixels differ \[image 13\]"):
        for batch in data.read_ahead((([k, k + 1], None) for k in range(0, 40, 2)), threads):
            seen += batch.images[:, 0, 0, 0].tolist()
    assert seen == list(range(12))


def test_a_reader_that_stops_early_ends_the_threads() -> None:
    reading = watched(Watched()).read_ahead(([k], None) for k in range(100))
    next(reading)
    assert [t for t in threading.enumerate() if t.name.startswith("sis-ahead")]
    reading.close()


@pytest.mark.parametrize(("size", "expected"), [((64, 64), 64), ((256, 256), 4), ((512, 1024), 1), ((16, 16), 64)])
def test_a_pass_over_the_split_is_bounded_and_complete(size: tuple[int, int], expected: int) -> None:
    class Count:
        def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
            assert draw is None
            batch.labels[position, 0, 0] = index

    ids = [f"{i:03d}" for i in range(100)]
    data = TrainingData(ids, size, label_space("scenes"), Count(), instances=True, augmented=True)
    batches = [batch.labels[:, 0, 0].tolist() for batch in data.in_order()]
    assert max(len(b) for b in batches) == expected
    assert [i for b in batches for i in b] == list(range(100))


def stamps(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(("kind", "files"), [("plain", {"records.bin"}), ("larger", {"records.bin", "ends.npy"})])
def test_a_second_use_reads_what_the_first_wrote(
    kind: str, files: set[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pairs: PairSet = request.getfixturevalue(kind)
    TrainingData.open(pairs, tmp_path)
    written = stamps(tmp_path)
    assert {p.name for p in written} == {*files, "manifest.json"}
    assert read_manifest(next(tmp_path.glob("[0-9a-f]*")), "decoded").meta["pairs_digest"] == pairs.manifest.digest
    TrainingData.open(pairs, tmp_path)
    assert stamps(tmp_path) == written


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("plain", lambda f: flip(f / "records.bin")),
        ("plain", lambda f: os.truncate(f / "records.bin", 1000)),
        ("plain", lambda f: (f / "manifest.json").unlink()),
        ("plain", lambda f: (f / "manifest.json").write_text("{}")),
        ("larger", lambda f: flip(f / "records.bin")),
        ("larger", lambda f: flip(f / "ends.npy")),
        ("larger", lambda f: (f / "ends.npy").unlink()),
    ],
)
def test_an_altered_or_partial_cache_is_made_again(
    kind: str, damage: Callable[[Path], object], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pairs: PairSet = request.getfixturevalue(kind)
    right = TrainingData.open(pairs, tmp_path).batch(range(12))
    folder = next(tmp_path.glob("[0-9a-f]*"))
    damage(folder)
    assert same(TrainingData.open(pairs, tmp_path).batch(range(12)), right)
    read_manifest(folder, "decoded")


def test_the_caches_of_pairs_that_are_no_more_are_removed(plain: PairSet, tmp_path: Path) -> None:
    old, mine = tmp_path / ("0" * 16), tmp_path / "mine"
    for folder in (old, mine):
        folder.mkdir()
        (folder / ".records.bin.tmp-1").write_bytes(b"left by a killed job")
    data = TrainingData.open(plain, tmp_path)
    assert not old.exists() and mine.exists()
    # Another job that has the data open still reads them after its pairs were prepared anew.
    (tmp_path / plain.manifest.digest[:16]).rename(old)
    TrainingData.open(plain, tmp_path)
    assert not old.exists() and np.array_equal(data.batch([1]).images[0], plain.get(1).image)


def test_two_jobs_that_need_the_same_cache_make_it_once(
    plain: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writes, both = training_data._write, [0], threading.Barrier(2, timeout=10)
    make, batches = training_data._made, list[RawBatch]()

    def counted(folder: Path, pairs: PairSet) -> Any:
        writes[0] += 1
        return write(folder, pairs)

    def together(pairs: PairSet, cache: Path) -> Any:
        both.wait()  # both have seen that there is no cache
        return make(pairs, cache)

    monkeypatch.setattr(training_data, "_write", counted)
    monkeypatch.setattr(training_data, "_made", together)

    def job() -> None:
        batches.append(TrainingData.open(plain, tmp_path).batch([7]))

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert writes == [1] and len(batches) == 2 and same(*batches)


def test_a_full_disk_is_one_line_before_anything_is_decoded(
    plain: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, length: int) -> None:
        assert (start, length) == (0, 48 * 32 * 32 * 6)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SisError, match=r"no space left to write records.bin"):
        TrainingData.open(plain, tmp_path)
    assert stamps(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_one_line(larger: PairSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SisError, match=r"cannot write .lock"):
        TrainingData.open(larger, tmp_path / "file" / "cache")


def test_a_pair_without_photograph_is_no_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = DatasetCard.model_validate(
        dataset_card("scenes_tiny").model_dump()
        | {"splits": {"train": {"count": 48}, "val": {"count": 3, "photographs": False}}}
    )
    read = scenes.read
    monkeypatch.setattr(
        scenes, "read", lambda c, e: Pair(e.image_id, None, read(c, e).label, reference_id="train-00000")
    )
    prepare(card, "val", tmp_path, tmp_path / "val")
    with pytest.raises(SisError, match=r"no photograph \[val-00000\]"):
        TrainingData.open(PairSet.open(tmp_path / "val"), tmp_path / "cache")
    assert stamps(tmp_path / "cache") == {}


def test_records_that_end_too_early_are_an_error(plain: PairSet, tmp_path: Path) -> None:
    path = tmp_path / "records.bin"
    write_raw_records(path, plain, lambda _: None)
    records, batch = RawRecords(path, plain.size, True), RawBatch.empty(1, plain.size, True)
    records.fill(batch, 0, 47, None)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(SisError, match="shortened while in use"):
        records.fill(batch, 0, 47, None)


def test_the_file_is_closed_when_the_data_are_dropped(plain: PairSet, tmp_path: Path) -> None:
    def open_files() -> int:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(str(tmp_path)) for link in links)

    data = TrainingData.open(plain, tmp_path)
    assert open_files() == 1
    del data
    assert open_files() == 0


def sided(release: bool) -> TrainingData:
    """Data with a left and a right class that change places in the mirror."""
    classes = [{"id": i, "name": n, "colour": [i, 0, 0]} for i, n in enumerate(("skin", "left", "right"))]
    classes[1]["mirror"], classes[2]["mirror"] = 2, 1
    space = LabelSpace.model_validate({"name": "sides", "void": 255, "classes": classes})
    return TrainingData(["a"], (4, 4), space, Watched(), instances=False, augmented=False, release=release)


def test_left_and_right_change_places_in_the_mirror_except_as_released() -> None:
    assert sided(False).mirror.tolist() == [0, 2, 1, 3]
    assert sided(True).mirror.tolist() == [0, 1, 2, 3]
