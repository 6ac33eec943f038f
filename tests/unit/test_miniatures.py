# SPDX-License-Identifier: Apache-2.0
"""Miniatures of the real datasets: read exactly, the same bytes each time, and every trap refused in one line."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import DATASETS, VOID, Miniature, Sample, write
from miniatures.celebamask_hq import PARTS
from miniatures.traps import TRAPS, spring
from PIL import Image

from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, label_space
from sis.data.check import check_raw
from sis.data.dataset_card import write_dataset_card
from sis.data.images import pixel_sha256
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.errors import SisError

ROOT = Path(__file__).resolve().parents[2]
#: Mean difference in grey levels that a JPEG of the highest qualities may make.
CODEC = 2.0


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Miniature]:
    """All five, unspoilt."""
    folder = tmp_path_factory.mktemp("mini")
    return {name: write(name, folder / name) for name in DATASETS}


def card_of(name: str, **changes: Any) -> DatasetCard:
    return DatasetCard.model_validate(dataset_card(f"{name}_mini").model_dump() | changes)


def with_instances() -> DatasetCard:
    """The miniature of COCO-Stuff with the instance maps that `coco_stuff_inst` reads."""
    whole, mini = dataset_card("coco_stuff_inst"), dataset_card("coco_stuff_mini")
    splits = {name: split.model_copy(update={"count": mini.splits[name].count}) for name, split in whole.splits.items()}
    return whole.model_copy(update={"splits": splits, "size": mini.size})


def tree(root: Path) -> dict[str, str]:
    """The sha256 of every file below a folder."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def prepared(card: DatasetCard, miniature: Miniature, split: str, out: Path) -> list[tuple[Sample, Any]]:
    """The samples of a split, each with the pair that was stored for it."""
    prepare(card, split, miniature.root, out)
    pairs = PairSet.open(out)
    assert pairs.ids == [s.image_id for s in miniature.samples[split]]
    return [(sample, pairs.stored(i)) for i, sample in enumerate(miniature.samples[split])]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", DATASETS)
def test_labels_photographs_and_references_are_read_exactly(
    name: str, split: str, miniatures: dict[str, Miniature], tmp_path: Path
) -> None:
    card = card_of(name)
    void = label_space(card.labels).void
    for sample, pair in prepared(card, miniatures[name], split, tmp_path):
        whole = pair.label if pair.source_label is None else pair.source_label
        expected = sample.label if void is None else np.where(sample.label == VOID, np.uint8(void), sample.label)
        np.testing.assert_array_equal(whole, expected, err_msg=sample.image_id)
        assert pair.reference_id == sample.reference_id
        if sample.photograph is None:
            assert pair.photograph is None
            continue
        with Image.open(sample.files["image"]) as picture:
            pixels, mode = np.asarray(picture.convert("RGB")), picture.mode
        height, width = sample.photograph.shape[:2]
        assert (pair.origin.width, pair.origin.height, pair.origin.mode) == (width, height, mode)
        assert pair.origin.sha256 == pixel_sha256(pixels)
        difference = np.abs(pixels.astype(int) - sample.photograph)
        assert difference.mean() < CODEC if sample.files["image"].suffix == ".jpg" else not difference.any()


def test_cityscapes_at_its_own_size_is_stored_bit_for_bit(miniatures: dict[str, Miniature], tmp_path: Path) -> None:
    card = card_of("cityscapes", size=[64, 128], prepare={"policy": "exact"})
    for split in ("train", "val"):
        for sample, pair in prepared(card, miniatures["cityscapes"], split, tmp_path / split):
            for read, drawn in ((pair.image, sample.photograph), (pair.label, sample.label)):
                np.testing.assert_array_equal(read, drawn)
            assert pair.instance.dtype == np.uint16
            np.testing.assert_array_equal(pair.instance, sample.instance)


def test_landscapes_need_no_resizing(miniatures: dict[str, Miniature], tmp_path: Path) -> None:
    card = card_of("landscapes")
    for sample, pair in prepared(card, miniatures["landscapes"], "train", tmp_path):
        np.testing.assert_array_equal(pair.image, np.asarray(Image.open(sample.files["image"])))
        assert pair.source_label is None


def test_eight_bit_instances_of_coco_are_read_as_they_are(miniatures: dict[str, Miniature], tmp_path: Path) -> None:
    for sample, pair in prepared(with_instances(), miniatures["coco_stuff"], "train", tmp_path):
        np.testing.assert_array_equal(pair.instance, sample.instance)


def test_the_parts_of_a_face_are_its_instances(miniatures: dict[str, Miniature], tmp_path: Path) -> None:
    for sample, pair in prepared(card_of("celebamask_hq"), miniatures["celebamask_hq"], "train", tmp_path):
        np.testing.assert_array_equal(pair.instance, sample.label)


def test_val_faces_have_the_highest_original_indices(miniatures: dict[str, Miniature]) -> None:
    mini = miniatures["celebamask_hq"]
    lines = (mini.root / "CelebA-HQ-to-CelebA-mapping.txt").read_text().splitlines()[1:]
    original = {line.split()[0]: int(line.split()[1]) for line in lines}
    place = {split: [original[s.files["image"].stem] for s in samples] for split, samples in mini.samples.items()}
    assert min(place["val"]) > max(place["train"])
    assert sorted(original.values()) != list(original.values())


@pytest.mark.parametrize("name", DATASETS)
def test_a_clean_miniature_passes_the_check(name: str, miniatures: dict[str, Miniature]) -> None:
    before = tree(miniatures[name].root)
    report = check_raw(card_of(name), miniatures[name].root)
    assert not report.faulty, report.text()
    assert [(s.split, s.read) for s in report.splits] == [("train", 8), ("val", 4)]
    assert tree(miniatures[name].root) == before


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_seed_writes_the_same_bytes(name: str, miniatures: dict[str, Miniature], tmp_path: Path) -> None:
    write(name, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(miniatures[name].root)
    write(name, tmp_path / "other", seed=1)
    assert tree(tmp_path / "other") != tree(miniatures[name].root)


@pytest.mark.parametrize("name", DATASETS)
def test_counts_and_sizes_can_be_chosen(name: str, tmp_path: Path) -> None:
    mini = write(name, tmp_path / "mini", {"train": 15, "val": 2}, (128, 256) if name == "cityscapes" else (96, 96))
    assert [len({s.image_id for s in mini.samples[split]}) for split in ("train", "val")] == [15, 2]
    splits = card_of(name).model_dump()["splits"]
    splits = {"train": splits["train"] | {"count": 15}, "val": splits["val"] | {"count": 2}}
    card = card_of(name, splits=splits, size=[96, 96], prepare={"policy": "sdm"})
    assert not check_raw(card, mini.root).faulty


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SisError, match="not empty"):
        write("ade20k", tmp_path)


def test_the_miniatures_hold_what_readers_get_wrong(miniatures: dict[str, Miniature]) -> None:
    every = {name: [s for split in mini.samples.values() for s in split] for name, mini in miniatures.items()}
    photographs = [s for name in ("ade20k", "coco_stuff") for s in every[name]]
    assert modes(photographs, "image") == {"RGB", "L", "CMYK"}
    sizes = {s.label.shape for s in every["ade20k"]}
    assert any(h > w for h, w in sizes) and any(h < w for h, w in sizes) and any(h % 2 and w % 2 for h, w in sizes)
    assert modes(every["coco_stuff"], "label") == {"L", "P"}
    assert modes(every["landscapes"], "label") == {"L", "I;16"}
    assert all((s.label == VOID).any() for name in ("ade20k", "coco_stuff") for s in every[name][:4])
    last = {name: max(int(s.label[s.label != VOID].max()) for s in samples) for name, samples in every.items()}
    assert last == {"cityscapes": 33, "ade20k": 149, "coco_stuff": 181, "celebamask_hq": 18, "landscapes": 28}
    assert any(touching_things(s) for s in every["cityscapes"])
    assert {s.files["image"].stem for s in every["celebamask_hq"]} >= {"0", "1999", "2000", "29999"}
    assert all(set(s.files) < {*PARTS, "image"} for s in every["celebamask_hq"])
    assert any(painted(s, reversed(PARTS)).tobytes() != s.label.tobytes() for s in every["celebamask_hq"])
    references = json.loads((miniatures["landscapes"].root / "label_to_img.json").read_text())
    assert len(set(references.values())) == len(references) == 4


def modes(samples: list[Sample], holds: str) -> set[str]:
    """Pillow's modes of the files."""
    found = set()
    for sample in samples:
        with Image.open(sample.files[holds]) as picture:
            found.add(picture.mode)
    return found


def touching_things(sample: Sample) -> bool:
    """Whether two things lie side by side that become one where 16 bits are cut off at 255."""
    assert sample.instance is not None
    left, right = sample.instance[:, :-1], sample.instance[:, 1:]
    return bool(((left != right) & (left > 255) & (right > 255)).any())


def painted(sample: Sample, order: Any) -> np.ndarray:
    """A face's label map with its parts painted in another order."""
    label = np.zeros_like(sample.label)
    for part in order:
        if part in sample.files:
            label[np.asarray(Image.open(sample.files[part]).convert("L")) > 0] = list(PARTS).index(part) + 1
    return label


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_refused_in_one_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    trap = TRAPS[name]
    mini = write(trap.dataset, tmp_path / "raw" / trap.dataset)
    spring(name, mini)
    card, before = card_of(trap.dataset), tree(tmp_path)
    if trap.split:
        with pytest.raises(SisError, match=trap.refusal) as refusal:
            prepare(card, trap.split, mini.root, tmp_path / "out")
        assert "\n" not in str(refusal.value)
    report = check_raw(card, mini.root)
    assert report.faulty and re.search(trap.refusal, report.text())
    assert tree(tmp_path) == before


def test_a_leaked_photograph_stops_the_dataset_card(tmp_path: Path) -> None:
    mini = write("ade20k", tmp_path / "raw")
    spring("leaked_pixels", mini)
    card, splits = card_of("ade20k"), ("train", "val")
    for split in splits:
        prepare(card, split, mini.root, tmp_path / split)
    with pytest.raises(SisError, match=TRAPS["leaked_pixels"].refusal):
        write_dataset_card([tmp_path / split for split in splits], tmp_path / "card", card)
    assert not (tmp_path / "card").exists()


def test_every_dataset_has_traps_and_every_trap_a_sentence() -> None:
    assert {t.dataset for t in TRAPS.values()} == set(DATASETS)
    assert all(t.story.endswith(".") for t in TRAPS.values())


def test_the_tool_writes_one_miniature_with_a_trap(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests/miniatures", "--out", tmp_path, "--trap", "wrong_count", "--val", "2"]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert done.stdout.endswith("coco_stuff: 8 train, 2 val\n")
    assert len(list((tmp_path / "coco_stuff/images/val2017").iterdir())) == 1
    again = subprocess.run(command, text=True, capture_output=True, check=False)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1 and "not empty" in again.stderr
