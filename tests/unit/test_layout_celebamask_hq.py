# SPDX-License-Identifier: Apache-2.0
"""CelebAMask-HQ: nineteen classes painted in the official order, and a split that the mapping file decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sis.config.cards import DatasetCard
from sis.config.files import label_space
from sis.data.images import pixel_sha256
from sis.data.layouts import celebamask_hq
from sis.data.layouts.celebamask_hq import MAPPING, PARTS
from sis.data.pair import Origin
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.errors import SisError

TABLE = {
    "name": "faces",
    "void": None,
    "classes": [{"id": i, "name": n, "colour": [i, i, i]} for i, n in enumerate(["background", *PARTS])],
}
#: CelebA's index of each face; the highest two are faces 1 and 2000.
ORIGINAL = {0: 5, 1: 202_000, 2: 17, 7: 0, 1999: 180_000, 2000: 200_001, 4001: 9}
ANNOTATIONS = "CelebAMask-HQ-mask-anno"


def card(**changes: Any) -> DatasetCard:
    splits = {"train": {"count": 5}, "val": {"count": 2}}
    facts = {"name": "faces", "title": "Faces", "layout": "celebamask_hq", "labels": TABLE, "size": [16, 16]}
    more = {"splits": splits, "files": {"label_scale": 2}, "prepare": {"policy": "sdm"}, "licence": "", "source": ""}
    return DatasetCard.model_validate({**facts, **more, **changes})


def photograph(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def mask_path(root: Path, index: int, part: str) -> Path:
    return root / ANNOTATIONS / str(index // 2000) / f"{index:05d}_{part}.png"


def write_mask(root: Path, index: int, part: str, mask: np.ndarray, mode: str = "L") -> Path:
    path = mask_path(root, index, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(path)
    return path


def write_mapping(root: Path, original: dict[int, int]) -> None:
    rows = [f"{i:<12d}{o:<12d}{o + 1:06d}.jpg" for i, o in original.items()]
    (root / MAPPING).write_text("\n".join(["idx         orig_idx    orig_file", *rows]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven faces whose skin is everything but the first row."""
    (tmp_path / "CelebA-HQ-img").mkdir()
    skin = np.ones((16, 16), bool)
    skin[0] = False
    for index in ORIGINAL:
        Image.fromarray(photograph(index)).save(tmp_path / f"CelebA-HQ-img/{index}.jpg", quality=100, subsampling=0)
        write_mask(tmp_path, index, "skin", skin)
    write_mapping(tmp_path, ORIGINAL)
    return tmp_path


def ids(root: Path, split: str, **changes: Any) -> list[str]:
    return [e.image_id for e in celebamask_hq.entries(card(**changes), split, root)]


def first(root: Path) -> np.ndarray:
    """The label map of face 0."""
    entries = celebamask_hq.entries(card(), "train", root)
    assert entries[0].image_id == "00000"
    return celebamask_hq.read(card(), entries[0]).label


def test_the_highest_original_indices_are_val(root: Path) -> None:
    assert ids(root, "val") == ["00001", "02000"]
    assert ids(root, "train") == ["00000", "00002", "00007", "01999", "04001"]


def test_the_rule_may_be_the_index_in_celeba_hq(root: Path) -> None:
    assert ids(root, "val", options={"rule": "index"}) == ["02000", "04001"]
    assert ids(root, "train", options={"rule": "original_index"}) == ids(root, "train")


def test_the_order_of_the_mapping_file_decides_nothing(root: Path) -> None:
    write_mapping(root, dict(reversed(ORIGINAL.items())))
    assert ids(root, "val") == ["00001", "02000"]


def test_a_face_names_its_files_by_part(root: Path) -> None:
    write_mask(root, 2, "hair", np.eye(16, dtype=bool))
    entry = celebamask_hq.entries(card(), "train", root)[1]
    assert entry.files == {
        "photograph": root / "CelebA-HQ-img/2.jpg",
        "hair": mask_path(root, 2, "hair"),
        "skin": mask_path(root, 2, "skin"),
    }


def test_every_part_has_the_class_of_its_place(root: Path) -> None:
    """One column a part."""
    mask_path(root, 0, "skin").unlink()
    for number, part in enumerate(PARTS):
        mask = np.zeros((2, 20), bool)
        mask[:, number] = True
        write_mask(root, 0, part, mask)
    label = first(root)
    np.testing.assert_array_equal(label, [[*range(1, 19), 0, 0]] * 2)
    assert label.dtype == np.uint8


def test_the_official_table_names_the_parts_in_this_order() -> None:
    assert [c.name for c in label_space("celebamask_hq").classes[1:]] == list(PARTS)


def test_a_later_part_covers_an_earlier_one(root: Path) -> None:
    """From left to right each column holds one part less, the last part first."""
    mask_path(root, 0, "skin").unlink()
    for number, part in enumerate(PARTS):
        mask = np.zeros((1, 18), bool)
        mask[0, : 18 - number] = True
        write_mask(root, 0, part, mask)
    np.testing.assert_array_equal(first(root), [list(range(18, 0, -1))])


def test_absent_parts_are_background(root: Path) -> None:
    write_mask(root, 0, "cloth", np.eye(16, dtype=bool))
    expected = np.where(np.eye(16, dtype=bool), 18, 1)
    expected[0, 1:] = 0
    np.testing.assert_array_equal(first(root), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_masks_are_read_as_tools_write_them(root: Path, mode: str) -> None:
    write_mask(root, 0, "nose", np.eye(16, dtype=bool), mode)
    assert (first(root) == 2).sum() == 16


def test_a_pair_is_prepared_with_the_photograph_at_twice_the_masks(root: Path, tmp_path: Path) -> None:
    read = celebamask_hq.read(card(), celebamask_hq.entries(card(), "val", root)[1])
    assert read.origin == Origin(32, 32, "RGB", pixel_sha256(read.image)) and read.instance is None
    assert np.abs(read.image.astype(int) - photograph(2000)).mean() < 3
    faces = card(files={"label_scale": 2, "instances": "label"}, edges=True)
    for split, count in [("val", 2), ("train", 5)]:
        prepare(faces, split, root, tmp_path / split)
        pairs = PairSet.open(tmp_path / split)
        assert len(pairs) == count and pairs.get(0).image.shape == (16, 16, 3)
        np.testing.assert_array_equal(pairs.get(0).instance, pairs.get(0).label)
        assert set(np.unique(pairs.get(0).label)) == {0, 1}


def refused(root: Path, words: str, split: str = "train", **changes: Any) -> None:
    with pytest.raises(SisError, match=words):
        celebamask_hq.entries(card(**changes), split, root)


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    path = write_mask(root, 0, "hat", np.ones((8, 16), bool))
    with pytest.raises(SisError, match=rf"mask of 16x8, those before it of 16x16 \[{path}\]"):
        first(root)


@pytest.mark.parametrize(
    "name", ["0/00000_beard.png", "0/00000_.png", "0/0_skin.png", "0/00000_skin2.png", "0/notes.png"]
)
def test_an_unknown_part_is_refused(root: Path, name: str) -> None:
    Image.new("L", (16, 16)).save(root / ANNOTATIONS / name)
    refused(root, rf"1 masks that are not called <five digits>_<part>\.png: {name[2:]}.*parts: skin, nose")


def test_a_mask_in_a_wrong_folder_is_refused(root: Path) -> None:
    Image.new("L", (16, 16)).save(root / ANNOTATIONS / "1/00000_hat.png")
    refused(root, "1 masks in a wrong folder: 1/00000_hat.png")


def test_a_face_without_masks_and_masks_without_a_face_are_refused(root: Path) -> None:
    path = mask_path(root, 7, "skin")
    path.rename(mask_path(root, 8, "skin"))
    refused(root, "1 numbers of masks without a photograph: 8")
    mask_path(root, 8, "skin").unlink()
    refused(root, "1 photographs without any mask: 7")


def test_photographs_and_mapping_must_agree(root: Path) -> None:
    write_mapping(root, {i: o for i, o in ORIGINAL.items() if i not in (1, 2)})
    refused(root, rf"2 photographs without an index: 1, 2 \[.*{MAPPING}\]")
    write_mapping(root, ORIGINAL | {i: 1000 + i for i in range(10, 17)})
    refused(root, "7 indices without a photograph: 10, 11, 12, 13, 14 and 2 more")
    (root / MAPPING).unlink()
    refused(root, rf"no such file \[.*{MAPPING}\]")


@pytest.mark.parametrize("name", ["00003.jpg", "x.jpg", "-1.jpg", "٣.jpg"])
def test_a_photograph_without_a_number_is_refused(root: Path, name: str) -> None:
    (root / "CelebA-HQ-img" / name).touch()
    refused(root, f"1 photographs without a number for a name: {name}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("orig_idx", "orig_id"), "must begin with the line 'idx orig_idx orig_file'"),
        (lambda t: t.split("\n", 1)[1], "must begin with the line"),
        (lambda t: "", "must begin with the line"),
        (lambda t: t.replace("000006.jpg", ""), r"two whole numbers and a file name \[.*mapping\.txt:2\]"),
        (lambda t: t.replace("000006.jpg", "000006.jpg x"), r"two whole numbers and a file name \[.*:2\]"),
        (lambda t: t.replace("202000 ", "2e5 "), r"two whole numbers.*:3\]"),
        (lambda t: t.replace("202000 ", "-1 "), r"two whole numbers.*:3\]"),
        (lambda t: t.replace("1           202000", "0           202000"), r"index 0 or .* stands twice \[.*:3\]"),
        (lambda t: t.replace("202000 ", "5 "), r"original index 5 stands twice \[.*:3\]"),
        (lambda t: t + "\n99 12\n", r"two whole numbers and a file name \[.*:10\]"),
    ],
)
def test_a_mapping_with_a_mistake_is_refused(root: Path, change: Any, words: str) -> None:
    text = (root / MAPPING).read_text()
    assert change(text) != text
    (root / MAPPING).write_text(change(text))
    refused(root, words)


def test_a_mapping_that_is_not_text_is_refused(root: Path) -> None:
    (root / MAPPING).write_bytes(b"\x89PNG\r\n")
    refused(root, rf"cannot read the mapping.*{MAPPING}")


def test_other_options_splits_and_counts_are_refused(root: Path) -> None:
    refused(root, "unknown rule 'orignal_index'.*did you mean 'original_index'", options={"rule": "orignal_index"})
    refused(root, "unknown option 'rules'.*did you mean 'rule'", options={"rules": "index"})
    splits = {"train": {"count": 5}, "val": {"count": 1}, "test": {"count": 1}}
    refused(root, "this layout has the splits train and val", splits=splits)
    refused(root, "7 photographs in all, 7 of them for val", splits={"train": {"count": 5}, "val": {"count": 7}})
