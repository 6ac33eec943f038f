# SPDX-License-Identifier: Apache-2.0
"""Laws of measuring, for every metric that there is: files, their order, batches and workers change no score."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_sets import CARD, CLASSES, LABELS, ROOT, SIZE, ids, write_images

from evaluators import sources
from evaluators.discovery import find_metric, stems
from evaluators.measure import measure_images, measure_reference
from evaluators.networks import Asked, Networks, Run
from evaluators.partial import content_sha256
from evaluators.score import score
from evaluators.segmenters import scenes_unet
from evaluators.sources import Companions
from evaluators.weights import WeightStore
from sis.config.protocols import ProtocolCard
from sis.data.image_set import shard_name
from sis.data.labels import LabelSpace
from sis.data.manifest import read_manifest, write_manifest
from sis.data.pair import Pair
from sis.data.pairs import ROW_GROUP, PairSet, pair_row
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS
from sis.data.tables import read_table, table_writer

pytestmark = pytest.mark.slow

MAPS, SAMPLES, REALS = 8, 2, 10
KEYS = range(MAPS * SAMPLES)
#: Metrics of label ids: a pixel whose two best classes tie may go either way, in percent of all pixels.
DECIDED = ("miou", "accuracy", "iou", "fwiou", "mean_accuracy", "mask_accuracy", "total-hue180")
#: What rounding in another batch, or on more threads, may change a score by.
RELATIVE, OF_PERCENT = 1e-4, 0.5


def every_metric(batch_size: int = CARD.batch_size) -> ProtocolCard:
    """All metrics by file stem, on a judge that is trained for a moment and on the smallest other networks."""
    whole = CARD.model_dump(mode="json")
    whole["segmenter"] |= {"steps": 3, "batch_size": 2}
    changes: dict[str, Any] = {
        "metrics": stems("metrics"), "batch_size": batch_size, "bootstrap": {"replicates": 8, "seed": 1},
        "features": {"options": {"dims": 64}}, "iidm": {"aesthetic": {"options": {"base": "mobilenet"}}},
    }  # fmt: skip
    return ProtocolCard.model_validate(whole | changes)


def write_pairs(folder: Path, rows: Sequence[dict], split: str, size: int) -> None:
    """Prepared pairs in files of so many rows."""
    names = [shard_name(number) for number in range(-(-len(rows) // size))]
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        part = rows[number * size : (number + 1) * size]
        with table_writer(folder / name, PAIRS, {}) as append:
            for start in range(0, len(part), ROW_GROUP):
                append(list(part[start : start + ROW_GROUP]))
    meta = {"dataset": "scenes_tiny", "split": split, "size": list(SIZE), "labels": LABELS.model_dump(mode="json")}
    meta |= {"prepare": {}, "augmented": False, "edges": False}
    write_manifest(folder, "pairs", [folder / name for name in names], meta, RunRecord.start())


def made_up(count: int, seed: int) -> list[dict]:
    """Pairs of coarse noise, each with a photograph of the training split as its style."""
    rng = np.random.default_rng(seed)
    found = []
    for i, name in enumerate(ids(count)):
        coarse = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        label = rng.integers(0, CLASSES, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
        found.append(pair_row(Pair(name, coarse, label, None, ids(REALS)[i % REALS]), SIZE))
    return found


class Loaded(Networks):
    """Networks that are built once for all measurements of this file."""

    made: dict[str, Any] = {}

    def load(self, asked: Asked, labels: LabelSpace) -> Run:
        return self._once(asked.key, lambda: Networks.load(self, asked, labels))

    def lpips(self, card: Any) -> Any:
        return self._once(f"lpips:{card.net}", lambda: Networks.lpips(self, card))

    def _once(self, key: str, build: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = build()
        return self.made[key]


@dataclasses.dataclass(frozen=True)
class World:
    """Label maps, photographs, a judge, and an image set in one piece."""

    root: Path

    @property
    def networks(self) -> Networks:
        weights = WeightStore.open(self.root / "none", ROOT / "config" / "weights.yaml")
        return Loaded(self.root / "judge.safetensors", weights)

    def rows(self, images: Path, val: Path, out: Path, card: ProtocolCard | None = None) -> dict[str, str]:
        """Hashes of what is measured of images, by slot."""
        beside = Companions(styles=PairSet.open(self.root / "train"))
        rows = measure_images(images, val, card or every_metric(), self.networks, out, companions=beside)
        return {name: content_sha256(found) for name, found in rows.items()}

    def reference(self, train: Path, out: Path, card: ProtocolCard | None = None) -> dict[str, str]:
        rows = measure_reference(train, card or every_metric(), self.networks, out)
        return {name: content_sha256(found) for name, found in rows.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    write_pairs(made.root / "train", made_up(REALS, 1), "train", REALS)
    write_pairs(made.root / "val", made_up(MAPS, 2), "val", MAPS)
    recipe = every_metric().trained_segmenter()
    assert recipe is not None
    scenes_unet.train(PairSet.open(made.root / "train"), recipe, made.root / "judge.safetensors")
    write_images(made.root / "images", MAPS, SAMPLES)
    yield made
    Loaded.made.clear()


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@functools.cache
def in_one_piece(world: World) -> tuple[dict[str, str], dict[str, str]]:
    """Rows of the image set and of the reference that were never cut."""
    with scratch() as out:
        return (
            world.rows(world.root / "images", world.root / "val", out / "partials"),
            world.reference(world.root / "train", out / "reference"),
        )


@settings(deadline=None, max_examples=3)
@given(order=st.permutations(KEYS), size=st.integers(1, len(KEYS)), threads=st.integers(1, 3))
def test_shards_their_order_and_decoding_workers_change_no_bit_of_any_metric(
    world: World, order: list[int], size: int, threads: int
) -> None:
    cut = [order[i : i + size] for i in range(0, len(order), size)]
    with scratch() as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "decoding_threads", lambda: threads)
        write_images(out / "images", MAPS, SAMPLES, cut=cut)
        rows = world.rows(out / "images", world.root / "val", out / "partials")
    assert rows == in_one_piece(world)[0]


@pytest.mark.parametrize("size", [1, 3])
def test_files_of_the_label_maps_and_of_the_reference_change_no_bit(world: World, size: int) -> None:
    with scratch() as out:
        for split in ("val", "train"):
            (path,) = read_manifest(world.root / split, "pairs").paths()
            write_pairs(out / split, read_table(path, PAIRS).to_pylist(), split, size)
        rows = world.rows(world.root / "images", out / "val", out / "partials")
        real = world.reference(out / "train", out / "reference")
    assert (rows, real) == in_one_piece(world)


def test_windows_change_scores_by_rounding_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release has one size of them; they are checked because they are the shards of partials."""
    usual = values(world, CARD.batch_size)
    monkeypatch.setattr(sources, "WINDOW", 3 * SAMPLES)
    require_equal(usual, scores(world, every_metric()))


Values = dict[tuple[str, str], float | None]


def scores(world: World, card: ProtocolCard) -> Values:
    with scratch() as out:
        world.rows(world.root / "images", world.root / "val", out / "partials", card)
        world.reference(world.root / "train", out / "reference", card)
        table = score(out / "partials", out / "reference", card, out / "scores.parquet").to_pylist()
    return {(row["metric"], row["class_name"]): row["value"] for row in table}


@functools.cache
def values(world: World, batch_size: int) -> Values:
    """All scores with judging networks that see so many images at once."""
    return scores(world, every_metric(batch_size))


def require_equal(usual: Values, found: Values) -> None:
    """Equal to the stated tolerance; every metric has a value, so none is passed over."""
    assert usual.keys() == found.keys()
    for (metric, name), value in usual.items():
        if value is None:
            assert found[metric, name] is None and name, f"{metric} has no value"
        elif metric.partition("[")[0] in DECIDED:
            assert found[metric, name] == pytest.approx(value, abs=OF_PERCENT), metric
        else:
            assert found[metric, name] == pytest.approx(value, rel=RELATIVE), metric


def test_every_metric_has_a_value_here(world: World) -> None:
    card = every_metric()
    assert [entry.stem for entry in card.entries()] == stems("metrics")
    named = {find_metric(entry.stem).module.name(entry.card) for entry in card.entries()}
    found = values(world, CARD.batch_size)
    assert {metric.partition("[")[0] for metric, name in found if not name} == named
    assert all(value is not None for (_, name), value in found.items() if not name)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_batch_of_the_judging_networks_changes_scores_by_rounding_only(world: World, batch_size: int) -> None:
    require_equal(values(world, CARD.batch_size), values(world, batch_size))


def test_threads_of_the_judging_networks_change_scores_by_rounding_only(world: World) -> None:
    usual = values(world, CARD.batch_size)
    torch.set_num_threads(2)
    try:
        require_equal(usual, scores(world, every_metric()))
    finally:
        torch.set_num_threads(1)
