# SPDX-License-Identifier: Apache-2.0
"""The built-in dataset: repeatable, complete, consistent, and not to be told apart by mean colour."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from sis.data import scenes_layout
from sis.data.scenes import STYLES, Scene, make_scene, scene_id, style_reference
from sis.errors import SisError

TABLE = Path(__file__).parents[2] / "config" / "labels" / "scenes.yaml"
IDS = range(10)
FROZEN_LABEL = "014482d3c18a7481b4d51927b0a0b80b362bb99eabbc3e1d7bd29c38891a904a"


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [make_scene(0, "train", i) for i in range(300)]


def _digest(scene: Scene) -> str:
    arrays = (scene.image, scene.label, scene.instance)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_same_bits_on_repeat_and_in_any_order(train: list[Scene]) -> None:
    for index in (7, 3, 250, 0):
        make_scene(5, "val", index, (48, 80))
        assert _digest(make_scene(0, "train", index)) == _digest(train[index])


def test_seed_split_and_index_each_change_the_scene() -> None:
    scenes = [make_scene(*key) for key in ((0, "train", 1), (1, "train", 1), (0, "val", 1), (0, "train", 2))]
    assert len({_digest(scene) for scene in scenes}) == 4
    assert len({scene.label.tobytes() for scene in scenes}) == 4


def test_label_map_is_frozen() -> None:
    assert hashlib.sha256(make_scene(0, "train", 0).label.tobytes()).hexdigest() == FROZEN_LABEL


def test_every_class_is_common_enough(train: list[Scene]) -> None:
    labels = np.stack([scene.label for scene in train])
    for class_id in IDS:
        mask = labels == class_id
        assert mask.any(axis=(1, 2)).mean() >= 0.35, class_id
        assert mask.mean() >= 0.008, class_id
    assert 0.01 < (labels == scenes_layout.VOID).mean() < 0.08


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 64), (64, 33), (32, 32), (128, 256)])
def test_arrays_have_the_right_form_at_any_size(size: tuple[int, int]) -> None:
    for index in range(8):
        scene = make_scene(3, "test", index, size)
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
        assert scene.label.shape == size and scene.label.dtype == np.uint8
        assert scene.instance.shape == size and scene.instance.dtype == np.uint16
        assert 0 <= scene.style < STYLES
        assert set(np.unique(scene.label)) <= {*IDS, scenes_layout.VOID}


def test_instances_agree_with_labels(train: list[Scene]) -> None:
    for scene in train[:100]:
        thing = np.isin(scene.label, scenes_layout.THINGS)
        assert np.array_equal(scene.instance > 0, thing)
        assert np.array_equal(scene.instance[thing] // 1000, scene.label[thing])


def test_some_cars_touch(train: list[Scene]) -> None:
    def touching(scene: Scene) -> bool:
        left, right = scene.instance[:, :-1], scene.instance[:, 1:]
        return bool(((left // 1000 == 6) & (right // 1000 == 6) & (left != right)).any())

    assert sum(touching(scene) for scene in train) >= 30


def test_splits_share_no_picture(train: list[Scene]) -> None:
    held_out = {make_scene(0, "val", i).image.tobytes() for i in range(300)}
    known = {scene.image.tobytes() for scene in train}
    assert len(held_out) == len(known) == 300
    assert not held_out & known


def test_layout_does_not_depend_on_resolution() -> None:
    small, large = make_scene(0, "train", 4).label, make_scene(0, "train", 4, (128, 128)).label
    assert (small == large[::2, ::2]).mean() > 0.85


def test_ids_sort_by_index() -> None:
    ids = [scene_id("val", i) for i in (0, 9, 12, 100, 99_999)]
    assert ids[2] == "val-00012" and ids == sorted(ids)
    with pytest.raises(SisError):
        scene_id("val", 100_000)


def test_style_reference_is_another_train_scene_of_the_same_style(train: list[Scene]) -> None:
    for split in ("train", "val"):
        for index in range(60):
            reference = style_reference(0, split, index, 300)
            assert reference == style_reference(0, split, index, 300)
            name, number = reference.rsplit("-", 1)
            assert name == "train" and reference != scene_id(split, index)
            assert train[int(number)].style == make_scene(0, split, index).style


def test_refusals() -> None:
    with pytest.raises(SisError, match="32 pixels"):
        make_scene(0, "train", 0, (31, 64))
    with pytest.raises(SisError, match="index"):
        make_scene(0, "train", -1)
    with pytest.raises(SisError, match="no other train scene"):
        style_reference(0, "train", 0, 1)


def test_every_style_occurs(train: list[Scene]) -> None:
    assert {scene.style for scene in train} == set(range(STYLES))


def test_mean_colour_is_a_poor_cue(train: list[Scene]) -> None:
    images = np.stack([scene.image for scene in train[:200]]).astype(np.float64)
    labels = np.stack([scene.label for scene in train[:200]])
    means = np.stack([images[:100][labels[:100] == c].mean(axis=0) for c in IDS])
    recalls = []
    for class_id in IDS:
        pixels = images[100:][labels[100:] == class_id]
        nearest = ((pixels[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        recalls.append((nearest == class_id).mean())
    assert np.mean(recalls) < 0.45


def test_label_table_matches_the_ids_in_code() -> None:
    table = yaml.safe_load(TABLE.read_text())
    assert table["name"] == "scenes" and table["void"] == scenes_layout.VOID
    assert [entry["id"] for entry in table["classes"]] == list(IDS)
    for entry in table["classes"]:
        assert getattr(scenes_layout, entry["name"].upper()) == entry["id"]
    assert len({tuple(entry["colour"]) for entry in table["classes"]}) == len(IDS)
