# SPDX-License-Identifier: Apache-2.0
"""From image set to score table on very small scenes: one pass, nothing twice, refusals in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from evaluators import cli
from evaluators.lpips_backbone import LpipsBackbone
from evaluators.measure import Networks, measure_images, measure_reference
from evaluators.partial import load_partial
from evaluators.score import score
from evaluators.segmenters import scenes_unet
from evaluators.weights import WeightStore
from sis.config.protocols import ProtocolCard
from sis.config.strict_yaml import load_model, load_yaml
from sis.data.image_set import ImageSetMeta, finish_image_set, images_table, shard_name, write_shard
from sis.data.manifest import read_manifest, write_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet, pair_row
from sis.data.provenance import RunRecord
from sis.data.scenes import make_scene, scene_id
from sis.data.schemas import PAIRS, SCORES
from sis.data.tables import read_table, write_table_file
from sis.errors import SisError

ROOT = Path(__file__).parents[2]
CARD = load_model(ROOT / "config" / "protocols" / "scenes-tiny.yaml", ProtocolCard)
MAPS, REALS, SIZE = 6, 10, (32, 32)


def write_pairs(folder: Path, split: str, count: int) -> None:
    scenes = [make_scene(0, split, i, SIZE) for i in range(count)]
    pairs = [Pair(scene_id(split, i), s.image, s.label, s.instance, "") for i, s in enumerate(scenes)]
    folder.mkdir(parents=True)
    shard = folder / shard_name(0)
    write_table_file(pa.Table.from_pylist([pair_row(p, SIZE) for p in pairs], schema=PAIRS), shard, PAIRS)
    labels, _ = load_yaml(ROOT / "config" / "labels" / "scenes.yaml")
    meta = {"dataset": "scenes_tiny", "split": split, "size": list(SIZE), "labels": labels}
    meta |= {"prepare": {}, "augmented": False, "edges": False}
    write_manifest(folder, "pairs", [shard], meta, RunRecord.start())


@dataclass(frozen=True)
class World:
    """Pairs, a trained judge and its measured reference."""

    root: Path

    @property
    def networks(self) -> Networks:
        weights = WeightStore.open(self.root / "weights", ROOT / "config" / "weights.yaml")
        return Networks(self.root / "judge.safetensors", weights)

    def images(
        self,
        name: str,
        samples: int = 2,
        shard: int = 500,
        drop: int = 0,
        meta: dict[str, object] | None = None,
    ) -> Path:
        """Write an image set: noisy copies of the photographs."""
        pairs, folder = PairSet.open(self.root / "val"), self.root / name
        keys = [(image_id, k) for image_id in pairs.ids for k in range(samples)]
        keys = keys[: len(keys) - drop]
        images = np.stack([_noisy(pairs.by_id(image_id).image, k) for image_id, k in keys])
        names = []
        for start in range(0, len(keys), shard):
            names.append(shard_name(start // shard))
            table = images_table(keys[start : start + shard], images[start : start + shard], 0)
            write_shard(table, folder / names[-1], {})
        facts = {
            "dataset": "scenes_tiny",
            "split": "val",
            "run": "noisy",
            "run_id": "noisy-01234567",
            "method": "noisy",
            "title": "Noisy copies",
            "kind": "python",
            "role": "contestant",
            "labels": "scenes",
            "size": list(SIZE),
            "samples_per_map": samples,
            "seed": 3,
            "sample_seed": 4,
            "batch_size": 4,
            "device": "cpu",
            "threads": 1,
            "sampling_seconds": 2.0,
        }
        finish_image_set(folder, names, ImageSetMeta.model_validate(facts | (meta or {})), RunRecord.start(), {})
        return folder

    def measure(self, images: Path, out: str, card: ProtocolCard = CARD) -> Path:
        measure_images(images, self.root / "val", card, self.networks, self.root / out)
        return self.root / out


def _noisy(image: NDArray[np.uint8], sample: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(sample).normal(0, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    made = World(tmp_path_factory.mktemp("world"))
    write_pairs(made.root / "train", "train", REALS)
    write_pairs(made.root / "val", "val", MAPS)
    scenes_unet.train(PairSet.open(made.root / "train"), CARD.segmenter, made.root / "judge.safetensors")
    measure_reference(made.root / "train", CARD, made.networks, made.root / "reference")
    return made


@pytest.fixture(scope="module")
def measured(world: World) -> Path:
    return world.measure(world.images("two"), "partials")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts network calls."""
    counted = {"segmenter": 0, "lpips": 0}

    def counting(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*arguments: object) -> object:
            counted[name] += 1
            return function(*arguments)

        return wrapped

    monkeypatch.setattr(scenes_unet.ScenesUnet, "predict", counting("segmenter", scenes_unet.ScenesUnet.predict))
    monkeypatch.setattr(LpipsBackbone, "pairwise", counting("lpips", LpipsBackbone.pairwise))
    return counted


def test_score_rows_follow_the_schema(world: World, measured: Path, tmp_path: Path) -> None:
    score(measured, world.root / "reference", CARD, tmp_path / "scores.parquet")
    rows = read_table(tmp_path / "scores.parquet", SCORES).to_pylist()
    overall = {r["metric"]: r for r in rows if r["class_name"] == ""}
    stand_in = "lpips-alex[stand-in:seeded-random-backbone]"
    assert list(overall) == [
        "miou",
        "accuracy",
        "fd-scenes-segmenter",
        stand_in,
        "ms-ssim",
        "images-per-second",
    ]
    assert overall[stand_in]["stand_in"] == "seeded-random-backbone"
    assert overall["miou"]["stand_in"] == ""
    for name, row in overall.items():
        assert row["seed"] == 3
        assert len(row["replicates"]) == (0 if name == "images-per-second" else CARD.bootstrap.replicates)
        assert row["n_maps"] == MAPS
        assert row["n_images"] == MAPS * (1 if name in ("miou", "accuracy", "fd-scenes-segmenter") else 2)
        if row["low"] is not None:
            assert row["low"] <= row["high"]
    assert overall["images-per-second"]["value"] == MAPS * 2 / 2.0
    assert 0 < overall["ms-ssim"]["value"] < 1
    classes = [r["class_name"] for r in rows if r["metric"] == "iou"]
    assert classes == [c.name for c in PairSet.open(world.root / "val").labels.classes]
    meta = read_manifest(tmp_path / "scores.parquet", "scores").meta
    assert set(meta["protocol"]) == {r["protocol_id"] for r in rows}
    assert meta["protocol"][overall["miou"]["protocol_id"]]["settings"] == {"class_rule": "union"}
    assert len({r["protocol_id"] for r in overall.values()}) == len(overall)


def test_one_sample_per_map_leaves_diversity_undefined_under_the_same_id(
    world: World, measured: Path, tmp_path: Path
) -> None:
    one = world.measure(world.images("one", samples=1), "partials-one")
    tables = [
        score(p, world.root / "reference", CARD, tmp_path / f"{p.name}.parquet").to_pylist() for p in (one, measured)
    ]
    ids = [{r["metric"]: r["protocol_id"] for r in rows if r["class_name"] == ""} for rows in tables]
    assert ids[0] == ids[1]
    value = {r["metric"]: r for r in tables[0] if r["class_name"] == ""}["ms-ssim"]
    assert value["value"] is None
    assert value["note"] == "1 of 2 samples a map"


def test_measuring_does_not_depend_on_shards(world: World, measured: Path) -> None:
    cut = world.measure(world.images("cut", shard=5), "partials-cut")
    for file in measured.glob("*.parquet"):
        one, two = load_partial(file)[0], load_partial(cut / file.name)[0]
        assert one.image_ids == two.image_ids
        for name, column in one.columns.items():
            np.testing.assert_allclose(two.columns[name], column, rtol=1e-5, atol=1e-5)
    assert [f.name.partition("-")[0] for f in sorted(measured.glob("*.parquet"))] == ["fd", "lpips", "miou", "ms_ssim"]


def test_one_network_call_a_batch_and_none_when_nothing_is_missing(world: World, calls: dict[str, int]) -> None:
    images = world.images("again")
    out = world.measure(images, "partials-again")
    batches = -(-MAPS // CARD.batch_size)  # the second samples are LPIPS' and MS-SSIM's alone
    assert calls == {"segmenter": batches, "lpips": MAPS}
    before = read_manifest(out, "partials").digest
    world.measure(images, "partials-again")
    assert calls == {"segmenter": batches, "lpips": MAPS}
    assert read_manifest(out, "partials").digest == before


def test_only_what_changed_is_measured_again(world: World, calls: dict[str, int]) -> None:
    images = world.images("part")
    world.measure(images, "partials-part")
    calls.update(segmenter=0, lpips=0)
    changed = CARD.model_copy(update={"ms_ssim": CARD.ms_ssim.model_copy(update={"window": 3})})
    world.measure(images, "partials-part", changed)
    assert calls == {"segmenter": 0, "lpips": 0}


def test_a_damaged_partial_is_measured_again(world: World, calls: dict[str, int]) -> None:
    images = world.images("damaged")
    out = world.measure(images, "partials-damaged")
    (damaged,) = out.glob("fd-*.parquet")
    damaged.write_bytes(b"cut")
    calls.update(segmenter=0, lpips=0)
    world.measure(images, "partials-damaged")
    assert calls["segmenter"] > 0
    load_partial(damaged)


def test_incomplete_image_sets_are_refused(world: World) -> None:
    images = world.images("short", drop=3)
    expected = r"of 12 samples 3 missing \(val-00004#1, val-00005#0, val-00005#1\)"
    with pytest.raises(SisError, match=expected):
        world.measure(images, "none")


@pytest.mark.parametrize(
    ("fact", "value"), [("dataset", "scenes"), ("split", "train"), ("labels", "other"), ("size", [64, 64])]
)
def test_image_sets_of_other_data_are_refused(world: World, fact: str, value: object) -> None:
    with pytest.raises(SisError, match=f"does not fit protocol 'scenes-tiny': {fact} is"):
        world.measure(world.images(f"other-{fact}", meta={fact: value}), "none")


def test_pairs_of_another_split_are_refused(world: World) -> None:
    with pytest.raises(SisError, match="pairs of scenes_tiny/val, protocol 'scenes-tiny' asks for"):
        measure_reference(world.root / "val", CARD, world.networks, world.root / "none")


def test_a_judge_of_another_recipe_is_refused(world: World, measured: Path) -> None:
    other = CARD.model_copy(update={"segmenter": CARD.segmenter.model_copy(update={"steps": 21})})
    with pytest.raises(SisError, match="trained by another recipe"):
        measure_reference(world.root / "train", other, world.networks, world.root / "none")


def test_features_that_are_not_finite_name_their_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = scenes_unet.ScenesUnet.predict

    def broken(self: scenes_unet.ScenesUnet, images: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
        labels, features = honest(self, images)
        features[1, 0] = np.nan
        return labels, features

    monkeypatch.setattr(scenes_unet.ScenesUnet, "predict", broken)
    with pytest.raises(SisError, match=r"fd: features of 1 images are not finite: val-00001#0"):
        world.measure(world.images("nan"), "partials-nan")


def test_scores_of_partials_from_another_protocol_are_refused(world: World, measured: Path, tmp_path: Path) -> None:
    reference = world.root / "reference"
    changed = CARD.model_copy(update={"ms_ssim": CARD.ms_ssim.model_copy(update={"window": 3})})
    with pytest.raises(SisError, match="ms_ssim was measured under another protocol"):
        score(measured, reference, changed, tmp_path / "x.parquet")
    with pytest.raises(SisError, match="these are partials of reference, expected images"):
        score(reference, reference, CARD, tmp_path / "x.parquet")


def test_training_repeats_bit_by_bit_and_loads_as_saved(world: World, tmp_path: Path) -> None:
    pairs, seen = PairSet.open(world.root / "train"), []
    again = scenes_unet.train(
        pairs, CARD.segmenter, tmp_path / "judge.safetensors", lambda done, total, extra: seen.append(done)
    )
    assert seen == list(range(1, CARD.segmenter.steps + 1))
    assert (tmp_path / "judge.safetensors").read_bytes() == world.networks.segmenter.read_bytes()
    images = np.stack([p.image for p in pairs])
    for ours, loaded in zip(
        again.predict(images), scenes_unet.load(world.networks.segmenter).predict(images), strict=True
    ):
        np.testing.assert_array_equal(ours, loaded)
    features = again.predict(images)[1]
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-3)
    assert features.std(0).max() < 1.01
    with pytest.raises(SisError, match="sides divisible by 8"):
        again.predict(np.zeros((1, 30, 32, 3), np.uint8))


def test_the_command_line_refuses_in_one_line(capsys: pytest.CaptureFixture[str], world: World) -> None:
    card = str(ROOT / "config" / "protocols" / "scenes-tiny.yaml")
    common = ["--protocol", card, "--segmenter", "none", "--out", str(world.root / "x")]
    assert cli.main(["measure", *common, "--images", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: --images and --pairs belong together")
    listed = str(ROOT / "config" / "weights.yaml")
    pairs = str(world.root / "train")
    assert cli.main(["measure", *common, "--reference-pairs", pairs, "--weights-list", listed]) == 2
    assert "no such artefact" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["measure", *common, "--images", "a", "--threads", "0"])
    assert stop.value.code == 2


def test_the_command_line_prints_scores(
    capsys: pytest.CaptureFixture[str], world: World, measured: Path, tmp_path: Path
) -> None:
    card = str(ROOT / "config" / "protocols" / "scenes-tiny.yaml")
    paths = ["--partials", str(measured), "--reference", str(world.root / "reference")]
    assert cli.main(["score", "--protocol", card, *paths, "--out", str(tmp_path / "s.parquet")]) == 0
    printed = capsys.readouterr().out
    assert "lpips-alex[stand-in:seeded-random-backbone]" in printed
    assert "6 images/s" in printed
    assert cli.main(["list"]) == 0
    assert "miou" in capsys.readouterr().out
