# SPDX-License-Identifier: Apache-2.0
"""The layout of files by patterns: pairs by name, values by the label table, style references by file name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sis.config import files as config_files
from sis.config.cards import DatasetCard
from sis.data.images import pixel_sha256
from sis.data.labels import LabelSpace
from sis.data.layouts import Entry, folder
from sis.data.pair import Origin
from sis.errors import SisError

RNG = np.random.default_rng(0)
TABLE = LabelSpace.model_validate(
    {
        "name": "three",
        "void": 255,
        "file_offset": 1,
        "file_void": [0],
        "classes": [{"id": i, "name": n, "colour": [i, 0, 0]} for i, n in enumerate(["sky", "sea", "sand"])],
    }
)
SIZE = (16, 24)


def card(**changes: Any) -> DatasetCard:
    splits = {"train": {"count": 3}, "val": {"count": 2}}
    facts = {"name": "own", "title": "Own", "layout": "folder", "labels": TABLE, "size": list(SIZE), "splits": splits}
    return DatasetCard.model_validate({**facts, "licence": "none", "source": "here", **changes})


def write(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def fill(root: Path, split: str, ids: str, *, instances: bool = False) -> None:
    """Photographs and label maps by the patterns that hold without any."""
    for i in ids.split():
        write(root / split / "images" / f"{i}.png", RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        write(root / split / "labels" / f"{i}.png", RNG.integers(0, 4, SIZE, dtype=np.uint8))
        if instances:
            write(root / split / "instances" / f"{i}.png", RNG.integers(0, 40_000, SIZE, dtype=np.uint16))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path, "train", "c a b", instances=True)
    fill(tmp_path, "val", "e d")
    return tmp_path


def test_without_patterns_a_split_is_a_folder_of_images_and_a_folder_of_labels(root: Path) -> None:
    listed = folder.entries(card(), "train", root)
    assert [e.image_id for e in listed] == ["a", "b", "c"]
    paths = {"photograph": root / "train/images/a.png", "label": root / "train/labels/a.png"}
    assert listed[0] == Entry("a", "train", paths, "")


def test_instances_of_their_own_are_a_third_folder(root: Path) -> None:
    listed = folder.entries(card(files={"instances": "file"}), "train", root)
    assert listed[2].files["instance"] == root / "train/instances/c.png"


def test_files_belong_together_by_the_ids_of_three_patterns(tmp_path: Path) -> None:
    for city, number in [("ulm", 1), ("bonn", 2), ("bonn", 1)]:
        image = f"{city}_{number}"
        write(tmp_path / f"left/train/{city}/{image}_left.png", np.zeros((*SIZE, 3), np.uint8))
        write(tmp_path / f"fine/train/{city}/{image}_ids.png", np.zeros(SIZE, np.uint8))
        write(tmp_path / f"fine/train/{city}/{image}_inst.png", np.zeros(SIZE, np.uint16))
    train = {
        "count": 3,
        "image": "left/train/*/{id}_left.png",
        "label": "fine/train/*/{id}_ids.png",
        "instance": "fine/train/*/{id}_inst.png",
    }
    cityscapes = card(splits={"train": train, "val": train}, files={"instances": "file"})
    listed = folder.entries(cityscapes, "val", tmp_path)
    assert [e.image_id for e in listed] == ["bonn_1", "bonn_2", "ulm_1"]
    assert [p.name for p in listed[2].files.values()] == ["ulm_1_ids.png", "ulm_1_left.png", "ulm_1_inst.png"]


def test_a_pair_is_read_with_its_ids_and_its_origin(root: Path) -> None:
    own = card(files={"instances": "file"})
    pair = folder.read(own, folder.entries(own, "train", root)[1])
    photo, values, instance = (
        np.asarray(Image.open(root / f"train/{k}/b.png")) for k in ("images", "labels", "instances")
    )
    assert pair.image_id == "b" and pair.source_label is None
    np.testing.assert_array_equal(pair.image, photo)
    np.testing.assert_array_equal(pair.label, np.array([255, 0, 1, 2])[values])
    np.testing.assert_array_equal(pair.instance, instance)
    assert pair.instance is not None and pair.instance.dtype == np.uint16 and pair.label.dtype == np.uint8
    assert pair.origin == Origin(24, 16, "RGB", pixel_sha256(photo))


def test_a_turned_photograph_has_the_origin_of_what_was_read(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / "train/images/a.png"
    stored = Image.open(path)
    stored.save(path, exif=exif)
    own = card(files={"exif": "apply"})
    pair = folder.read(own, folder.entries(own, "train", root)[0])
    upright = np.rot90(np.asarray(stored), -1)
    assert pair.origin == Origin(16, 24, "RGB", pixel_sha256(upright)) and pair.image.shape == (24, 16, 3)
    with pytest.raises(SisError, match=r"EXIF orientation 6.*a\.png"):
        folder.read(card(), folder.entries(card(), "train", root)[0])


def test_values_outside_the_table_are_named_with_their_file(root: Path) -> None:
    write(root / "train/labels/a.png", np.array([[0, 3, 4], [1, 900, 2]], np.uint16))
    with pytest.raises(SisError, match=r"outside the table 'three': 4, 900 \[.*train/labels/a\.png\]"):
        folder.read(card(), folder.entries(card(), "train", root)[0])


def test_palettes_and_bits_are_read_as_the_card_says(root: Path) -> None:
    values = np.asarray(Image.open(root / "train/labels/a.png"))
    image = Image.fromarray(values)
    image.putpalette([9, 8, 7] * 256)
    image.save(root / "train/labels/a.png")
    write(root / "train/instances/a.png", values)
    listed = folder.entries(card(), "train", root)
    with pytest.raises(SisError, match="palette"):
        folder.read(card(), listed[0])
    lenient = card(files={"palette": "indices", "instances": "file", "instance_bits": 8})
    pair = folder.read(lenient, folder.entries(lenient, "train", root)[0])
    np.testing.assert_array_equal(pair.label, np.array([255, 0, 1, 2])[values])
    np.testing.assert_array_equal(pair.instance, values)


def test_a_split_without_photographs_has_none(root: Path) -> None:
    for path in (root / "val/images").iterdir():
        path.unlink()
    bare = card(splits={"train": {"count": 3}, "val": {"count": 2, "photographs": False}})
    listed = folder.entries(bare, "val", root)
    assert [(e.image_id, list(e.files)) for e in listed] == [("d", ["label"]), ("e", ["label"])]
    pair = folder.read(bare, listed[0])
    assert pair.photograph is None and pair.origin is None and pair.label.shape == SIZE


def test_files_without_their_partner_are_counted_and_named(root: Path) -> None:
    fill(root, "train", "p1 p2 p3 p4 p5 p6 p7")
    for path in sorted((root / "train/labels").glob("p*")):
        path.unlink()
    (root / "train/images/b.png").unlink()
    with pytest.raises(SisError) as refusal:
        folder.entries(card(), "train", root)
    assert "7 photographs without label maps: p1, p2, p3, p4, p5 and 2 more" in str(refusal.value)
    assert "1 label maps without photographs: b [own/train]" in str(refusal.value)


def test_instance_maps_need_their_partner_too(root: Path) -> None:
    own = card(files={"instances": "file"})
    (root / "train/instances/a.png").rename(root / "train/instances/z.png")
    with pytest.raises(SisError, match="1 label maps without instance maps: a; 1 instance maps without label maps: z"):
        folder.entries(own, "train", root)
    assert len(folder.entries(card(), "train", root)) == 3


def test_the_folder_has_no_options(root: Path) -> None:
    with pytest.raises(SisError, match="unknown option 'seed' of layout folder"):
        folder.entries(card(options={"seed": 1}), "train", root)


# references


def with_references(root: Path, text: str | dict) -> DatasetCard:
    (root / "style.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return card(splits={"train": {"count": 3}, "val": {"count": 2, "photographs": False, "references": "style.json"}})


def test_a_reference_is_the_id_of_a_training_photograph(root: Path) -> None:
    own = with_references(root, {"e.png": "a.png", "d.png": "c.png"})
    listed = folder.entries(own, "val", root)
    assert [(e.image_id, e.reference_id) for e in listed] == [("d", "c"), ("e", "a")]
    assert folder.read(own, listed[0]).reference_id == "c"


def test_a_reference_is_an_id_even_where_file_names_hold_more(root: Path) -> None:
    for split, old in [("train", "images/a.png"), ("val", "labels/d.png"), ("val", "labels/e.png")]:
        path = root / split / old
        path.rename(path.with_name(f"{path.stem}_x.png"))
    (root / "style.json").write_text('{"d_x.png": "a_x.png", "e_x.png": "a_x.png"}')
    train = {"count": 1, "image": "train/images/{id}_x.png"}
    val = {"count": 2, "photographs": False, "label": "val/labels/{id}_x.png", "references": "style.json"}
    listed = folder.entries(card(splits={"train": train, "val": val}), "val", root)
    assert [(e.image_id, e.reference_id) for e in listed] == [("d", "a"), ("e", "a")]


GOOD = {"d.png": "a.png", "e.png": "b.png"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"d.png": "a.png"}, "1 label maps without a reference: e.png"),
        ({**GOOD, "f.png": "a.png"}, "1 references of no label map in val: f.png"),
        ({**GOOD, "e.png": "x.png"}, "1 references that are no training photographs: x.png"),
        ({**GOOD, "e.png": "a.PNG"}, "1 references that are no training photographs: a.PNG"),
        ({**GOOD, "e.png": "d.png"}, "1 references that are no training photographs: d.png"),
        ({**GOOD, "e.png": "../train/images/a.png"}, "1 names that lead out of their folder"),
        ({**GOOD, "e.png": "/etc/passwd"}, "1 names that lead out of their folder: /etc/passwd"),
        ({**GOOD, "e.png": "..\\a.png"}, "1 names that lead out of their folder"),
        ({"d.png": "a.png", "../e.png": ".."}, "2 names that lead out of their folder"),
        ({**GOOD, "e.png": 5}, "must map the name of each label map to one photograph's"),
        ({**GOOD, "e.png": ["a.png"]}, "must map"),
        ({**GOOD, "e.png": {"a.png": "a.png"}}, "must map"),
        ('["d.png", "e.png"]', "must map"),
        ("null", "must map"),
        ('{"d.png": "a.png", "e.png": "b.png", "d.png": "c.png"}', "1 keys that stand twice: d.png"),
        ('{"d.png": "a.png", "e.png": "b.png"', "not a readable JSON file"),
        ("", "not a readable JSON file"),
        ("[" * 200_000, "not a readable JSON file|must map"),
        ('{"d.png": "a.png", "e.png": "b.png",}', "not a readable JSON file"),
    ],
)
def test_doubtful_references_are_refused(root: Path, text: str | dict, words: str) -> None:
    own = with_references(root, text)
    with pytest.raises(SisError, match=words) as refusal:
        folder.entries(own, "val", root)
    assert str(root / "style.json") in str(refusal.value)


def test_a_file_of_references_that_is_not_text_is_refused(root: Path) -> None:
    own = with_references(root, GOOD)
    (root / "style.json").write_bytes(b"\x80\xff{}")
    with pytest.raises(SisError, match="not a readable JSON file"):
        folder.entries(own, "val", root)


def test_a_file_of_references_outside_the_root_is_refused(root: Path) -> None:
    own, outside = with_references(root, GOOD), root.with_name(f"{root.name}-style.json")
    (root / "style.json").rename(outside)
    with pytest.raises(SisError, match=r"no such file.*style\.json"):
        folder.entries(own, "val", root)
    (root / "style.json").symlink_to(outside)
    with pytest.raises(SisError, match=r"leaves the dataset's root.*style\.json"):
        folder.entries(own, "val", root)


# label tables


def test_a_table_of_its_own_file_is_loaded_once_for_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = config_files.label_space
    monkeypatch.setattr(folder, "label_space", lambda name: loads.append(name) or real(name))
    folder._loaded.cache_clear()
    named = card(labels="scenes")
    assert [folder.label_table(named).name for _ in range(5)] == ["scenes"] * 5
    assert loads == ["scenes"]
    assert folder.label_table(card()) == TABLE and loads == ["scenes"]


def test_another_project_has_its_own_tables(project_copy: Path) -> None:
    path = project_copy / "config/labels/scenes.yaml"
    path.write_text(path.read_text().replace("name: sky", "name: heaven"))
    assert folder.label_table(card(labels="scenes")).classes != config_of_checkout().classes


def config_of_checkout() -> LabelSpace:
    import yaml

    text = (Path(__file__).parents[2] / "config/labels/scenes.yaml").read_text()
    return LabelSpace.model_validate(yaml.safe_load(text))
