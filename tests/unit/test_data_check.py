# SPDX-License-Identifier: Apache-2.0
"""Verification of raw data: everything is found and counted, the first of each kind is named, nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import own_pairs
import pytest

from sis.config.files import dataset_card
from sis.data import check as check_module
from sis.data.check import EXAMPLES, Report, check_raw
from sis.errors import SisError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own_pairs.write(tmp_path / "harbour")


def only_kind(report: Report) -> tuple[int, list[str]]:
    (faults,) = report.faults.values()
    return faults.count, faults.examples


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_sound_data_are_counted_and_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    report = check_raw(own_pairs.card(), root)
    report.refuse()
    assert tree(tmp_path) == before
    train, val = report.splits
    assert (train.split, train.expected, len(train.ids), train.read) == ("train", 8, 8, 8)
    assert (val.split, val.expected, len(val.ids), val.read) == ("val", 4, 4, 4)
    assert train.sizes == {(24, 20): 3, (24, 32): 3, (40, 24): 2}
    assert train.extents() == ((24, 20), (24, 32), (40, 24))
    assert train.modes == {"RGB": 6, "L": 2}
    pixels = np.zeros(256, np.int64)
    for index in range(8):
        height, width = own_pairs.SIZES[index % 3]
        pixels[1] += height // 2 * width
        pixels[own_pairs.VOID] += 4
        pixels[0] += height // 2 * width - 4
    assert np.array_equal(train.pixels, pixels)
    assert train.images[[0, 1, own_pairs.VOID]].tolist() == [8, 8, 8] and train.images.sum() == 24


def test_the_report_shows_counts_sizes_modes_and_classes(root: Path) -> None:
    lines = check_raw(own_pairs.card(), root).text().splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert "train 8 8 8 24x20 / 24x32 / 40x24 RGB x6, L x2" in words
    assert "val 4 4 4 24x20 / 24x20 / 40x24 RGB x3, L x1" in words
    assert "unlabelled: train 0.6%, val 0.6%" in lines
    assert "classes that never occur: 2 of 5 (3 gull, 4 bow)" in lines
    assert "dead ids that do occur: none" in lines
    assert f"1 quay 50.0% {'#' * 40}" in words and f"0 water 49.4% {'#' * 40}" in words
    assert lines[-1] == "ok  harbour: can be prepared"


def test_a_dead_id_that_occurs_is_reported(root: Path) -> None:
    own_pairs.relabel(own_pairs.file(root, "val", "labels", 1), 2)
    report = check_raw(own_pairs.card(), root)
    report.refuse()
    assert "dead ids that do occur: 1 of 5 (2 crane | tower)" in report.text()


def test_all_faulty_images_are_counted_and_the_first_are_named(root: Path) -> None:
    for index in range(7):
        own_pairs.relabel(own_pairs.file(root, "train", "labels", index), 9 + index)
    report = check_raw(own_pairs.card(), root)
    count, examples = only_kind(report)
    assert (count, len(examples)) == (7, EXAMPLES)
    assert all(own_pairs.image_id("train", i) in line and f": {9 + i}" in line for i, line in enumerate(examples))
    assert report.splits[0].read == 1 and report.splits[1].read == 4
    text = report.text()
    assert "7 x label values outside the table" in text and "  and 2 more" in text and "ok  " not in text
    with pytest.raises(
        SisError, match=r"^harbour is unfit, 7 faults, the first: label values outside .*train-000"
    ) as e:
        report.refuse()
    assert "\n" not in str(e.value)


def test_faults_of_several_kinds_are_told_apart(root: Path) -> None:
    for index in (0, 2):
        path = own_pairs.file(root, "train", "images", index)
        path.write_bytes(path.read_bytes()[:-20])
    shutil.copyfile(own_pairs.file(root, "val", "labels", 0), own_pairs.file(root, "val", "labels", 1))
    report = check_raw(own_pairs.card(), root)
    truncated, unfitting = report.faults.values()
    assert truncated.count == 2 and all("truncated" in line for line in truncated.examples)
    assert unfitting.count == 1 and "do not fit" in unfitting.examples[0] and "val-001" in unfitting.examples[0]
    with pytest.raises(SisError, match="3 faults of 2 kinds"):
        report.refuse()


def test_a_wrong_count_is_a_fault_and_the_files_are_read_all_the_same(root: Path) -> None:
    for kind in ("images", "labels"):
        own_pairs.file(root, "val", kind, 3).unlink()
    own_pairs.relabel(own_pairs.file(root, "val", "labels", 0), 77)
    report = check_raw(own_pairs.card(), root)
    wrong_count, outside = report.faults.values()
    assert "val has 3 pairs, its card expects 4" in wrong_count.examples[0]
    assert "77" in outside.examples[0]
    assert len(report.splits[1].ids) == 3 and report.splits[1].read == 2


def test_an_unpaired_file_is_one_fault_and_other_splits_are_read(root: Path) -> None:
    own_pairs.file(root, "train", "labels", 5).unlink()
    report = check_raw(own_pairs.card(), root)
    count, (line,) = only_kind(report)
    assert count == 1 and "train-005" in line
    assert [s.read for s in report.splits] == [0, 4]


def test_what_only_the_policy_refuses_is_found_too(root: Path) -> None:
    report = check_raw(own_pairs.card(prepare={"policy": "exact"}), root)
    count, examples = only_kind(report)
    assert count == 12 and "the dataset's size is (16, 16)" in examples[0]


@pytest.mark.parametrize("what", ["photograph", "id"])
def test_splits_that_overlap_are_refused_but_only_reported_of_a_release(root: Path, what: str) -> None:
    name = own_pairs.image_id("train", 2) if what == "id" else own_pairs.image_id("val", 2)
    for kind in ("images", "labels"):
        own_pairs.file(root, "val", kind, 2).unlink()
        source = own_pairs.file(
            root, "train" if what == "photograph" else "val", kind, 2 if what == "photograph" else 1
        )
        shutil.copyfile(source, root / "val" / kind / f"{name}.png")
    sentence = f"1 {what} in both train and val: " + ("train-002 = val-002" if what == "photograph" else "train-002")
    report = check_raw(own_pairs.card(), root)
    count, (line,) = only_kind(report)
    assert count == 1 and line.startswith(sentence)
    release = check_raw(own_pairs.card(prepare={"policy": "sdm", "fidelity": "release"}), root)
    release.refuse()
    assert f"overlap: {sentence}" in release.text()
    known = check_raw(own_pairs.card(known_overlap=["val-002"]), root)
    assert f"overlap: {sentence}" in known.text()
    assert known.faulty == (1 if what == "id" else 0), "an id is one pair's own, whatever the card knows"


def test_photographs_that_a_split_repeats_are_counted(root: Path) -> None:
    for kind in ("images", "labels"):
        shutil.copyfile(own_pairs.file(root, "train", kind, 0), own_pairs.file(root, "train", kind, 3))
    report = check_raw(own_pairs.card(), root)
    report.refuse()
    assert "photographs that their split holds twice or more: 1 in train" in report.text()


def test_a_split_without_photographs_is_checked_by_its_label_maps(root: Path) -> None:
    shutil.rmtree(root / "val" / "images")
    splits = {"train": {"count": 8}, "val": {"count": 4, "photographs": False}}
    report = check_raw(own_pairs.card(splits=splits), root)
    report.refuse()
    assert report.splits[1].modes == {"": 4} and "no photograph x4" in report.text()
    assert not report.splits[1].photographs


def test_a_quick_check_lists_everything_but_opens_few_pairs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "QUICK", 2)
    report = check_raw(own_pairs.card(), root, quick=True)
    assert [(len(s.ids), s.read) for s in report.splits] == [(8, 2), (4, 2)]
    assert "at most 2 pairs" in report.text() and report.text().endswith("nothing wrong in what was read")
    own_pairs.file(root, "train", "labels", 7).unlink()
    assert check_raw(own_pairs.card(), root, quick=True).faulty == 1


def test_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"no folder with the raw files of harbour \[.*nowhere\].*roots:"):
        check_raw(own_pairs.card(), tmp_path / "nowhere")


def test_missing_splits_are_faults(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report = check_raw(own_pairs.card(), tmp_path / "empty")
    assert report.faulty == 2 and "no label map could be read" in report.text()


def test_workers_change_nothing(tmp_path: Path) -> None:
    card = dataset_card("scenes_tiny")
    splits = {"train": {"count": 80}, "val": {"count": 70}}
    card = type(card).model_validate(card.model_dump() | {"splits": splits})
    alone, together = (check_raw(card, tmp_path, workers) for workers in (1, 2))
    assert alone.text() == together.text() and alone.splits[0].photographs == together.splits[0].photographs
    assert alone.splits[0].read == 80
