# SPDX-License-Identifier: Apache-2.0
"""Protocols with several segmenters and settings: each metric sees its own card, each image is decoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_evaluators_measure as tiny
import torch
from numpy.typing import NDArray

from evaluators import networks, one_pass
from evaluators.definition import called
from evaluators.measure import measure_images, measure_reference
from evaluators.networks import Networks
from evaluators.score import score
from evaluators.sources import Companions, Source
from evaluators.weights import WeightStore
from sis.config.judges import FeaturesCard, FeedCard, SegmenterPreset
from sis.config.protocols import ProtocolCard
from sis.config.strict_yaml import validate
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.errors import SisError

ROOT = Path(__file__).parents[2]
MAPS = 6


SMALL = {"feature_scale": 16, "classes": 10, "size": 32}


def preset(name: str, **words: object) -> SegmenterPreset:
    facts = {"name": name, "title": name, "network": "face_unet", "options": SMALL, "source": "test"}
    return SegmenterPreset.model_validate({**facts, "weights": ["face-unet"], **words})


PRESETS = {
    "plain": preset("plain"),
    "enlarged": preset("enlarged", feed=FeedCard(size="label"), compare="full", options={**SMALL, "size": 64}),
    "eleven": preset("eleven", options={**SMALL, "classes": 11}),
    "turned": preset("turned", ids=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
}


def protocol(metrics: list[object], **words: object) -> ProtocolCard:
    body = tiny.CARD.model_dump(mode="json") | {"segmenter": "plain", "metrics": metrics} | words
    return validate(ProtocolCard, body, "test protocol")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tiny.World:
    made = tiny.World(tmp_path_factory.mktemp("entries"))
    tiny.write_pairs(made.root / "train", "train", 8)
    tiny.write_pairs(made.root / "val", "val", MAPS)
    return made


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_preset", PRESETS.__getitem__)


@pytest.fixture
def judges(world: tiny.World) -> Networks:
    return Networks(None, WeightStore.open(world.root / "weights", ROOT / "config" / "weights.yaml"))


def full_labels(world: tiny.World) -> PairSet:
    """The same label maps, each pixel four times."""
    pairs = PairSet.open(world.root / "val")
    by_id = pairs.by_id

    class Larger(PairSet):
        def by_id(self, image_id: str):  # type: ignore[override]
            pair = by_id(image_id)
            return type(pair)(pair.image_id, pair.photograph, pair.label.repeat(2, 0).repeat(2, 1), None, "")

    return Larger.open(world.root / "val")


TWO = protocol(
    [{"metric": "miou", "name": "miou-a"}, {"metric": "miou", "segmenter": "enlarged", "name": "miou-b"}],
    labels="scenes_tiny",
)


def scores(world: tiny.World, judges: Networks, card: ProtocolCard, tmp_path: Path, **more: object) -> dict[str, dict]:
    images = world.images(f"set-{tmp_path.name}", **more)
    measure_images(images, world.root / "val", card, judges, tmp_path / "p", companions=Companions(full_labels(world)))
    measure_reference(world.root / "train", card, judges, tmp_path / "r")
    rows = score(tmp_path / "p", tmp_path / "r", card, tmp_path / "s.parquet").to_pylist()
    return {row["metric"]: row for row in rows if row["class_name"] == ""}


def test_two_segmenters_are_two_columns_with_two_ids_and_say_that_they_are_stand_ins(
    world: tiny.World, judges: Networks, tmp_path: Path
) -> None:
    found = scores(world, judges, TWO, tmp_path)
    assert list(found) == ["miou-a[stand-in:seeded-random]", "miou-b[stand-in:seeded-random]"]
    a, b = found.values()
    assert a["protocol_id"] != b["protocol_id"] and a["stand_in"] == "seeded-random"
    assert a["value"] != b["value"]
    meta = read_manifest(tmp_path / "s.parquet", "scores").meta["protocol"]
    assert meta[a["protocol_id"]]["labels_sha256"] == "" and meta[b["protocol_id"]]["labels_sha256"]
    assert meta[b["protocol_id"]]["judge"]["feed"] == {"size": "label", "kernel": "bicubic"}


def test_every_image_is_decoded_once_for_all_networks(
    world: tiny.World, judges: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Second samples are nobody's business under this card."""
    decoded: list[str] = []
    honest = Source.images

    def counting(self: Source, keys: list) -> object:
        decoded.extend(name for name, _ in keys)
        return honest(self, keys)

    monkeypatch.setattr(Source, "images", counting)
    images = world.images("decoded")
    measure_images(images, world.root / "val", TWO, judges, tmp_path, companions=Companions(full_labels(world)))
    assert sorted(decoded) == sorted(PairSet.open(world.root / "val").ids)


def test_a_class_of_the_network_is_the_label_id_that_the_preset_says(
    world: tiny.World, judges: Networks, tmp_path: Path
) -> None:
    plain = judges.load(networks.Asked("published", PRESETS["plain"]), PairSet.open(world.root / "val").labels)
    turned = judges.load(networks.Asked("published", PRESETS["turned"]), PairSet.open(world.root / "val").labels)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(9 - plain(images, (32, 32))[0], turned(images, (32, 32))[0])


def test_a_segmenter_with_another_number_of_classes_is_refused(world: tiny.World, judges: Networks) -> None:
    labels = PairSet.open(world.root / "val").labels
    with pytest.raises(SisError, match=r"'eleven' answers with 11 classes, label table 'scenes' has 10 that count"):
        judges.load(networks.Asked("published", PRESETS["eleven"]), labels)


def test_full_label_maps_that_are_needed_and_not_given_are_asked_for(
    world: tiny.World, judges: Networks, tmp_path: Path
) -> None:
    with pytest.raises(SisError, match="label maps at full size, and none are given"):
        measure_images(world.images("nofull"), world.root / "val", TWO, judges, tmp_path)


def test_metrics_without_a_segmenter_need_none_and_those_with_one_say_so(tmp_path: Path) -> None:
    card = protocol(["ms_ssim"], segmenter=None)
    assert card.trained_segmenter() is None
    with pytest.raises(SisError, match="has no segmenter, but metrics that need one"):
        networks.segmenter_of(card)


def test_an_interrupted_measurement_keeps_its_finished_windows(
    world: tiny.World, judges: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.sources.WINDOW", 4)  # two label maps of two samples
    images, card = world.images("cut-short"), protocol(["miou", "ms_ssim"])
    whole = measure_images(images, world.root / "val", card, judges, tmp_path / "whole")
    honest, seen = one_pass.OnePass.measure, []

    def dying(self: one_pass.OnePass, window: object, slots: object) -> object:
        seen.append(window.index)  # type: ignore[attr-defined]
        if len(seen) == 2:
            raise KeyboardInterrupt
        return honest(self, window, slots)  # type: ignore[arg-type]

    monkeypatch.setattr(one_pass.OnePass, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        measure_images(images, world.root / "val", card, judges, tmp_path / "cut")
    again = measure_images(images, world.root / "val", card, judges, tmp_path / "cut")
    assert seen == [0, 1, 1, 2]
    for name, rows in whole.items():
        for column, values in rows.columns.items():
            np.testing.assert_array_equal(values, again[name].columns[column])


def test_a_metric_that_is_added_measures_itself_alone(
    world: tiny.World, judges: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = world.images("added")
    measure_images(images, world.root / "val", protocol(["miou"]), judges, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}

    def never(self: Networks, *_: object) -> NDArray:
        raise AssertionError("the segmenter was asked again")

    monkeypatch.setattr(Networks, "load", never)
    added = protocol(["miou", "accuracy", "ms_ssim", {"metric": "miou", "class_rule": "gt", "name": "miou-gt"}])
    measure_images(images, world.root / "val", added, judges, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert before.items() < after.items() and len(after) == 2


def test_two_metrics_of_one_name_are_refused(world: tiny.World, judges: Networks, tmp_path: Path) -> None:
    twice = protocol(["ms_ssim", {"metric": "ms_ssim", "ms_ssim": {"scales": 1, "window": 3}}])
    assert [called(entry) for entry in twice.entries()] == ["ms-ssim", "ms-ssim"]
    with pytest.raises(SisError, match="both called ms-ssim"):
        scores(world, judges, twice, tmp_path)


@pytest.mark.parametrize(
    "asked",
    [
        networks.Asked("published", PRESETS["plain"]),
        networks.Asked("extractor", FeaturesCard(options={"dims": 64})),
    ],
    ids=["segmenter", "extractor"],
)
def test_networks_answer_in_whole_float32(judges: Networks, world: tiny.World, asked: networks.Asked) -> None:
    seen = []
    run = judges.load(asked, PairSet.open(world.root / "val").labels)
    before = torch.backends.cudnn.allow_tf32
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
    )
    try:
        run(np.zeros((1, 32, 32, 3), np.uint8), (32, 32))
    finally:
        hook.remove()
    assert set(seen) == {(False, True)} and torch.backends.cudnn.allow_tf32 == before
