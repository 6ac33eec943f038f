# SPDX-License-Identifier: Apache-2.0
"""Judging at the original size of label maps, which differs from image to image, on miniatures of ADE20K and COCO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluators import networks
from evaluators.discovery import find_segmenter
from evaluators.measure import measure_images, measure_reference
from evaluators.network import Source
from evaluators.networks import Networks
from evaluators.partial import Partial
from evaluators.score import score
from evaluators.sources import NO_COMPANIONS, Companions, full_labels_sha256, open_images, pairs_sha256
from evaluators.weights import WeightStore
from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, named
from sis.config.judges import FeedCard, SegmenterPreset
from sis.config.protocols import ProtocolCard
from sis.config.strict_yaml import validate
from sis.data.image_set import ImageSetMeta, finish_image_set, images_table, shard_name, write_shard
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.data.provenance import RunRecord
from sis.errors import SisError

ROOT = Path(__file__).parents[2]
#: Small relatives of the judges of each dataset, with as many classes.
SMALL: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "ade20k": ("upernet", {"encoder": "resnet18", "decoder": "c1", "sizes": [32, 64]}, ["csail-encoder"]),
    "coco_stuff": ("deeplabv2", {"blocks": [1, 1, 1, 1], "rates": [1]}, ["deeplabv2-coco-stuff"]),
}


@dataclass(frozen=True)
class Small:
    """A prepared miniature with an image set: each photograph at the dataset's size, turned by 180 degrees."""

    root: Path
    card: DatasetCard
    truth: dict[str, NDArray[np.uint8]]
    network: str
    options: dict[str, Any]
    weights: list[str]

    @property
    def pairs(self) -> PairSet:
        return PairSet.open(self.root / "val")

    def preset(self, name: str) -> SegmenterPreset:
        full = {"feed": FeedCard(size="label"), "compare": "full"} if name.startswith("full") else {}
        facts = {"name": name, "title": name, "network": self.network, "options": self.options, "source": "test"}
        return SegmenterPreset.model_validate({**facts, "weights": self.weights, **full})

    def protocol(self, **words: object) -> ProtocolCard:
        body = {
            "name": "test", "title": "Test", "dataset": self.card.name, "split": "val", "segmenter": "full",
            "reference": {"split": "val"}, "metrics": ["miou"], "bootstrap": {"replicates": 2, "seed": 0},
            "batch_size": 3, "version": 1,
        }  # fmt: skip
        return validate(ProtocolCard, body | words, "test protocol")

    def measured(self, card: ProtocolCard, out: Path, companions: Companions) -> dict[str, Partial]:
        judges = Networks(None, WeightStore.open(self.root / "weights", ROOT / "config" / "weights.yaml"))
        measure_reference(self.root / "val", card, judges, out / "reference")
        return measure_images(
            self.root / "images", self.root / "val", card, judges, out / "partials", companions=companions
        )

    def expected(self) -> dict[str, NDArray[np.int64]]:
        """Confusions of each image, from the drawn label map and the enlarged image, without the harness."""
        judge = find_segmenter(self.network).load(self.options, Source())
        ids, found = self.pairs.labels.evaluated_ids, {}
        for name, truth in self.truth.items():
            image = Image.fromarray(turned(self.pairs, name)).resize(truth.shape[::-1], Image.Resampling.BICUBIC)
            answer = judge.predict(np.asarray(image)[None])[0]
            assert answer.shape == truth.shape
            counts = np.zeros((len(ids), len(ids)), np.int64)
            for row, wanted in enumerate(ids):
                counts[row] = np.bincount(answer[truth == wanted], minlength=len(ids))
            found[name] = counts
        return found


def turned(pairs: PairSet, name: str) -> NDArray[np.uint8]:
    return pairs.by_id(name).image[::-1, ::-1]


@pytest.fixture(scope="module", params=sorted(SMALL))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    torch.set_num_threads(1)
    root, card = tmp_path_factory.mktemp(request.param), dataset_card(f"{request.param}_mini")
    drawn = miniatures.write(request.param, root / "raw")
    prepare(card, "val", root / "raw", root / "val")
    truth = {sample.image_id: sample.label for sample in drawn.samples["val"]}
    void = PairSet.open(root / "val").labels.void
    truth = {name: np.where(label == miniatures.VOID, np.uint8(void or 0), label) for name, label in truth.items()}
    made = Small(root, card, truth, *SMALL[request.param])
    write_images(made)
    return made


def write_images(small: Small) -> None:
    pairs = small.pairs
    images = np.stack([turned(pairs, name) for name in pairs.ids])
    table = images_table([(name, 0) for name in pairs.ids], images, 0)
    write_shard(table, small.root / "images" / shard_name(0), {})
    facts = {
        "dataset": pairs.dataset, "split": "val", "run": "turned", "run_id": "turned-01234567", "method": "turned",
        "title": "Turned", "kind": "python", "role": "contestant", "labels": pairs.labels.name,
        "size": list(pairs.size), "samples_per_map": 1, "seed": 0, "sample_seed": 0, "batch_size": 1, "device": "cpu",
        "threads": 1, "sampling_seconds": 1.0,
    }  # fmt: skip
    meta = ImageSetMeta.model_validate(facts)
    finish_image_set(small.root / "images", [shard_name(0)], meta, RunRecord.start(), {})


@pytest.fixture
def presets(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_preset", small.preset)


@pytest.mark.usefixtures("presets")
def test_confusions_are_counted_on_label_maps_of_their_own_sizes(small: Small, tmp_path: Path) -> None:
    shapes = {truth.shape for truth in small.truth.values()}
    assert len(shapes) > 1 and small.pairs.size not in shapes
    (rows,) = small.measured(small.protocol(labels="source"), tmp_path, Companions(small.pairs)).values()
    expected = small.expected()
    assert rows.image_ids == sorted(expected)
    np.testing.assert_array_equal(rows.columns["confusion"], [expected[name] for name in rows.image_ids])
    pixels = [int(np.isin(small.truth[name], small.pairs.labels.evaluated_ids).sum()) for name in rows.image_ids]
    assert rows.columns["confusion"].sum((1, 2)).tolist() == pixels and len(set(pixels)) > 1
    answers = rows.columns["confusion"].sum((0, 1))
    assert (answers > 0).sum() > 1  # a judge that names one class everywhere would show nothing


@pytest.mark.usefixtures("presets")
def test_the_batch_of_other_metrics_changes_no_confusion(small: Small, tmp_path: Path) -> None:
    found = []
    for size in (1, 4):
        card = small.protocol(labels="source", batch_size=size)
        (rows,) = small.measured(card, tmp_path / str(size), Companions(small.pairs)).values()
        found.append(rows.columns["confusion"])
    np.testing.assert_array_equal(*found)


@pytest.mark.usefixtures("presets")
def test_the_protocol_id_has_the_full_label_maps_only_where_they_are_compared(small: Small, tmp_path: Path) -> None:
    metrics = ["miou", {"metric": "miou", "segmenter": "prepared"}]
    card = small.protocol(labels="source", metrics=metrics)
    small.measured(card, tmp_path, Companions(small.pairs))
    rows = score(tmp_path / "partials", tmp_path / "reference", card, tmp_path / "s.parquet").to_pylist()
    ids = {row["metric"].partition("[")[0]: row["protocol_id"] for row in rows if row["class_name"] == ""}
    records = read_manifest(tmp_path / "s.parquet", "scores").meta["protocol"]
    assert records[ids["miou-full"]]["labels_sha256"] == full_labels_sha256(small.pairs)
    assert records[ids["miou-full"]]["judge"]["compare"] == "full"
    assert records[ids["miou-prepared"]]["labels_sha256"] == ""


def test_the_hash_of_full_label_maps_does_not_depend_on_the_size_they_were_prepared_to(
    small: Small, tmp_path: Path
) -> None:
    other = small.card.model_copy(update={"size": [48, 40], "prepare": {"policy": "scp"}})
    other = DatasetCard.model_validate(other.model_dump(warnings=False))
    prepare(other, "val", small.root / "raw", tmp_path / "val")
    pairs = PairSet.open(tmp_path / "val")
    assert full_labels_sha256(pairs) == full_labels_sha256(small.pairs)
    assert pairs_sha256(pairs) != pairs_sha256(small.pairs)


def test_one_pixel_that_no_smaller_map_shows_changes_the_hash(small: Small, tmp_path: Path) -> None:
    name = max(small.truth, key=lambda name: small.truth[name].size)
    raw = tmp_path / "raw"
    drawn = miniatures.write(small.card.name.removesuffix("_mini"), raw)
    (file,) = [s.files["label"] for s in drawn.samples["val"] if s.image_id == name]
    values = np.array(Image.open(file))
    values[0, 0] = values[values != values[0, 0]][0]  # the first pixel lies in no cell's centre
    picture = Image.fromarray(values)
    palette = Image.open(file).getpalette()
    if palette:
        picture.putpalette(palette)
    picture.save(file)
    prepare(small.card, "val", raw, tmp_path / "val")
    pairs = PairSet.open(tmp_path / "val")
    assert pairs_sha256(pairs) == pairs_sha256(small.pairs)
    assert full_labels_sha256(pairs) != full_labels_sha256(small.pairs)


def test_source_means_the_dataset_of_the_protocol(small: Small) -> None:
    assert small.protocol(labels="source").labels == small.card.name
    assert small.protocol(labels="other").labels == "other"
    assert small.protocol().labels is None


def test_a_judge_at_full_size_without_label_maps_is_refused(small: Small) -> None:
    source = open_images(small.root / "images", small.root / "val", small.protocol(), NO_COMPANIONS)
    with pytest.raises(SisError, match=r"at full size, and none are given.*`labels: source`"):
        source.label(source.windows[0].keys[0][0], full=True)


def test_every_shipped_protocol_with_a_judge_at_full_size_names_its_label_maps() -> None:
    judged = []
    for path in sorted((ROOT / "config" / "protocols").glob("*.yaml")):
        card = named("protocols", path.stem, ProtocolCard)
        for entry in card.entries():
            judge = entry.card.segmenter
            if isinstance(judge, str) and named("segmenters", judge, SegmenterPreset).compare == "full":
                assert card.labels is not None, f"{card.name}: {judge}"
                ours, full = dataset_card(card.dataset), dataset_card(card.labels)
                assert (ours.root or ours.name, ours.labels) == (full.root or full.name, full.labels)
                judged.append((card.name, judge))
    assert {judge for _, judge in judged} >= {"cs-up-full", "ade-up-full", "coco-up-full"}
    assert {name for name, _ in judged} >= {"ade20k_sdm", "ade20k_bench", "coco_stuff_inst_sdm", "coco_stuff_bench"}
