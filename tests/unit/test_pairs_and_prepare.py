# SPDX-License-Identifier: Apache-2.0
"""Pairs: prepared once, resumed where they were left, refused when the raw data are not what the card says."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sis.config.cards import DatasetCard
from sis.config.files import dataset_card
from sis.data.layouts import Entry, scenes
from sis.data.manifest import read_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.data.scenes import make_scene
from sis.errors import SisError


def card(**changes: Any) -> DatasetCard:
    return DatasetCard.model_validate(dataset_card("scenes_tiny").model_dump() | changes)


def spoil(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Make the layout read pairs with some field changed."""
    read = scenes.read

    def spoiled(*arguments: Any) -> Pair:
        return dataclasses.replace(read(*arguments), **changes)

    monkeypatch.setattr(scenes, "read", spoiled)


def test_prepared_pairs_are_the_datasets_own_arrays(tiny_pairs: Path) -> None:
    pairs = PairSet.open(tiny_pairs / "val")
    assert (len(pairs), pairs.size, pairs.dataset, pairs.split) == (16, (32, 32), "scenes_tiny", "val")
    assert pairs.ids == sorted(pairs.ids)
    scene = make_scene(0, "val", 5, (32, 32))
    pair = pairs.get(5)
    assert pair.image_id == "val-00005" and pair.reference_id.startswith("train-")
    for mine, theirs in ((pair.image, scene.image), (pair.label, scene.label), (pair.instance, scene.instance)):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_pairs_are_found_by_position_by_id_and_in_order(tiny_pairs: Path) -> None:
    pairs = PairSet.open(tiny_pairs / "val")
    assert [p.image_id for p in pairs] == pairs.ids
    assert pairs.by_id("val-00003").label.tobytes() == pairs.get(3).label.tobytes()
    with pytest.raises(SisError, match=r"no image 'val-3' in scenes_tiny/val"):
        pairs.by_id("val-3")


def test_random_access_crosses_row_groups(tmp_path: Path) -> None:
    many = card(splits={"train": {"count": 120}, "val": {"count": 1}})
    prepare(many, "train", tmp_path, tmp_path / "out")
    pairs = PairSet.open(tmp_path / "out")
    for index in (119, 0, 50, 49, 100, 99):
        np.testing.assert_array_equal(pairs.get(index).label, make_scene(0, "train", index, (32, 32)).label)


def test_preparing_twice_gives_equal_bytes_and_keeps_finished_shards(tmp_path: Path) -> None:
    first = prepare(card(), "val", tmp_path, tmp_path / "out")
    shard = tmp_path / "out" / "shard-0000.parquet"
    os.utime(shard, (1, 1))
    again = prepare(card(), "val", tmp_path, tmp_path / "out")
    assert shard.stat().st_mtime == 1
    assert again.files == first.files and again.meta == first.meta
    elsewhere = prepare(card(), "val", tmp_path, tmp_path / "other")
    assert elsewhere.files == first.files


def test_a_changed_card_prepares_again(tmp_path: Path) -> None:
    first = prepare(card(), "val", tmp_path, tmp_path / "out")
    other = prepare(card(options={"seed": 1}), "val", tmp_path, tmp_path / "out")
    assert other.files != first.files
    assert other.run["seeds"] == {"seed": 1}


def test_the_manifest_counts_label_pixels(tiny_pairs: Path) -> None:
    meta = read_manifest(tiny_pairs / "val", "pairs").meta
    labels = np.stack([p.label for p in PairSet.open(tiny_pairs / "val")])
    assert meta["label_pixels"] == {str(i): int((labels == i).sum()) for i in np.unique(labels)}
    assert meta["count"] == 16 and meta["subset"]


def test_an_unknown_split_or_layout_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"no split 'vall'.*did you mean 'val'"):
        prepare(card(), "vall", tmp_path, tmp_path / "out")
    with pytest.raises(SisError, match=r"unknown layout 'scene'.*did you mean 'scenes'"):
        prepare(card(layout="scene"), "val", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"sead": 1}, "did you mean 'seed'"), ({"seed": 1.5}, "type int"), ({"seed": True}, "type int")],
)
def test_an_option_that_the_layout_does_not_know_is_refused(tmp_path: Path, options: dict, reason: str) -> None:
    with pytest.raises(SisError, match=reason):
        prepare(card(options=options), "val", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (["val-00000"], "has 1 pairs, its card expects 16.*card of its own"),
        ([f"val-{i:05d}" for i in range(17)], "has 17 pairs"),
        ([f"val-{i % 15:05d}" for i in range(16)], "duplicate ids: val-00000"),
        ([f"val-{i:05d}" for i in reversed(range(16))], "sorted"),
    ],
)
def test_a_split_that_is_not_what_the_card_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str], reason: str
) -> None:
    monkeypatch.setattr(scenes, "entries", lambda *_: [Entry(i, "val") for i in ids])
    with pytest.raises(SisError, match=reason):
        prepare(card(), "val", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": np.full((32, 32), 77, np.uint8)}, r"outside the table 'scenes': 77.*val-00000"),
        ({"label": np.zeros((32, 16), np.uint8)}, r"photograph of 32x32 and label map of 16x32.*val-00000"),
        ({"photograph": np.zeros((16, 32, 3), np.uint8)}, r"photograph of 32x16 and label map of 32x32"),
        ({"photograph": None}, r"photograph where the card says there is none, or none"),
        ({"instance": np.zeros((16, 32), np.uint16)}, r"instance map of 32x16, label map of 32x32"),
    ],
)
def test_a_bad_pair_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    spoil(monkeypatch, **changes)
    with pytest.raises(SisError, match=reason):
        prepare(card(), "val", tmp_path, tmp_path / "out")
    assert not list(tmp_path.rglob("*.*"))


def test_an_altered_shard_is_noticed_when_pairs_are_opened(tmp_path: Path) -> None:
    prepare(card(), "val", tmp_path, tmp_path)
    shard = tmp_path / "shard-0000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SisError, match="sha256 differs"):
        PairSet.open(tmp_path)


def test_pairs_of_an_older_release_are_refused(tiny_pairs: Path) -> None:
    manifest = read_manifest(tiny_pairs / "val", "pairs")
    older = {key: value for key, value in manifest.meta.items() if key not in ("prepare", "augmented", "edges")}
    with pytest.raises(SisError, match=r"pairs of an older release .*val\] - run prepare again"):
        PairSet(dataclasses.replace(manifest, meta=older))
