# SPDX-License-Identifier: Apache-2.0
"""The card of prepared splits: true numbers, equal bytes, and a refusal where splits do not belong together."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import own_pairs
import pytest
from PIL import Image

from sis.config.cards import DatasetCard
from sis.config.files import dataset_card
from sis.data import dataset_card as module
from sis.data.dataset_card import write_dataset_card
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.data.schemas import DATASET_CARD
from sis.data.split_facts import spread
from sis.data.tables import read_table, table_metadata
from sis.errors import SisError

FILES = ["card.md", "card.parquet", "pairs.png"]


def prepared(folder: Path, card: DatasetCard, instances: bool = False) -> list[Path]:
    """Write raw files for a card, unless they are there, and prepare its splits."""
    if not (folder / "raw").exists():
        own_pairs.write(folder / "raw", instances=instances)
    splits = [folder / card.prepare.fidelity / split for split in card.splits]
    for path in splits:
        prepare(card, path.name, folder / "raw", path)
    return splits


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The splits of `own_pairs.card()`."""
    return prepared(tmp_path_factory.mktemp("harbour"), own_pairs.card())


def table_row(text: str, first: str) -> list[str]:
    """The cells of the first Markdown row that begins with `first`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_the_table_holds_what_is_in_the_pairs(harbour: list[Path], tmp_path: Path) -> None:
    write_dataset_card(harbour, tmp_path, own_pairs.card())
    rows = read_table(tmp_path / "card.parquet", DATASET_CARD).to_pylist()
    assert [(r["split"], r["class_id"]) for r in rows] == [
        (s, i) for s in ("train", "val") for i in (0, 1, 2, 3, 4, 255)
    ]
    for folder in harbour:
        pairs = PairSet.open(folder)
        stored = [pairs.stored(i).label for i in range(len(pairs))]
        total = sum(label.size for label in stored)
        for row in (r for r in rows if r["split"] == folder.name):
            pixels = sum(int((label == row["class_id"]).sum()) for label in stored)
            assert row["pixels"] == pixels and row["share"] == pytest.approx(pixels / total)
            assert row["images"] == sum(bool((label == row["class_id"]).any()) for label in stored)
    known = [(r["class_name"], r["evaluator_id"], r["ignored"], r["dead"]) for r in rows[:6]]
    assert known == [
        ("water", 0, False, False),
        ("quay", 1, False, False),
        ("crane | tower", 2, False, True),
        ("gull", 3, False, False),
        ("bow", None, True, False),
        ("unlabelled", None, True, False),
    ]
    assert all(r["dataset"] == "harbour" for r in rows)


def test_the_page_says_what_the_dataset_is(harbour: list[Path], tmp_path: Path) -> None:
    assert write_dataset_card(harbour, tmp_path, own_pairs.card()) == tmp_path / "card.md"
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    text = (tmp_path / "card.md").read_text()
    assert text.startswith("# Harbour\n") and "Subset" not in text
    assert table_row(text, "preparation")[1] == "policy `sdm`, fidelity `paper`"
    assert table_row(text, "label table")[1] == "`harbour`: 5 classes, 4 scored, void id 255"
    assert table_row(text, "train")[:5] == ["train", "8", "8", "24x20 / 24x32 / 40x24", "RGB x6, L x2"]
    assert "No id and no photograph is in two splits." in text
    assert "Classes that no split shows: 2 of 5 (3 gull, 4 bow)." in text and "Dead ids that occur" not in text
    assert table_row(text, "1")[:5] == ["1", "quay", "1", "50.000%", "8"]
    assert table_row(text, "2") == ["2", r"crane \| tower (dead)", "2", "-", "-", "-", "-"]
    assert table_row(text, "4")[:4] == ["4", "bow", "-", "-"]
    assert table_row(text, "255")[1:3] == ["unlabelled", "-"]
    assert PairSet.open(harbour[0]).manifest.digest in text


def test_a_subset_carries_a_badge(tiny_pairs: Path, tmp_path: Path) -> None:
    text = write_dataset_card([tiny_pairs / "train", tiny_pairs / "val"], tmp_path).read_text()
    title = dataset_card("scenes_tiny").title
    assert text.startswith(f"# {title} [subset: tiny]\n\n> **Subset `tiny`**: a part of the dataset")
    assert table_metadata(tmp_path / "card.parquet")["subset"] == "tiny"
    assert "48 label maps of train name" in text and "as references of the wanted style" in text


def test_the_same_splits_give_the_same_bytes_in_any_order(harbour: list[Path], tmp_path: Path) -> None:
    write_dataset_card(harbour, tmp_path / "a", own_pairs.card())
    write_dataset_card([p / "manifest.json" for p in reversed(harbour)], tmp_path / "b", own_pairs.card())
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_content_hash_is_that_of_the_pairs_not_of_their_preparation(harbour: list[Path], tmp_path: Path) -> None:
    shutil.copytree(harbour[0].parents[1] / "raw", tmp_path / "raw")
    again = prepared(tmp_path, own_pairs.card())
    facts = []
    for number, splits in enumerate((harbour, again)):
        write_dataset_card(splits, tmp_path / str(number), own_pairs.card())
        facts.append(table_metadata(tmp_path / str(number) / "card.parquet")["splits"]["val"])
    assert facts[0]["content"] == facts[1]["content"] and facts[0]["manifest"] != facts[1]["manifest"]
    assert facts[0]["pairs"] == 4 and facts[0]["modes"] == {"L": 1, "RGB": 3}


def test_statistics_are_counted_without_opening_a_picture(
    harbour: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = module.read_table
    monkeypatch.setattr(module, "read_table", lambda p, s, columns: read.append(columns) or original(p, s, columns))
    write_dataset_card(harbour, tmp_path, own_pairs.card())
    assert read and not {"image", "label", "instance", "source_label"} & {name for columns in read for name in columns}


def test_the_page_is_written_last(harbour: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset_card(harbour, tmp_path, own_pairs.card())

    def full(*given: object) -> None:
        raise SisError("no space left")

    monkeypatch.setattr(module, "write_table", full)
    with pytest.raises(SisError, match="no space left"):
        write_dataset_card(harbour, tmp_path, own_pairs.card())
    assert not (tmp_path / "card.md").exists(), "an old page must not speak of new files"


def test_the_sheet_shows_photographs_label_maps_and_edges(tmp_path: Path) -> None:
    card = own_pairs.card(files={"instances": "file"}, edges=True)
    splits = prepared(tmp_path, card, instances=True)
    write_dataset_card(splits, tmp_path / "card", card)
    with Image.open(io.BytesIO((tmp_path / "card" / "pairs.png").read_bytes())) as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(int)
    white, black = (sheet == 255).all(2), (sheet == 0).all(2)
    colours = {tuple(c) for c in sheet.reshape(-1, 3)}
    assert (70, 130, 180) in colours and (128, 64, 128) in colours, "colours of the table"
    # 8 pairs of 16x16, enlarged 8 times: each edge map is two white rows of cells in a black field of 128 rows.
    assert white.any() and black.sum() > 12 * 128 * 64
    plain = own_pairs.card()
    write_dataset_card(prepared(tmp_path / "plain", plain), tmp_path / "without", plain)
    with Image.open(tmp_path / "without" / "pairs.png") as picture:
        assert sheet.shape[0] - picture.height == 2 * (128 + 6), "one row less in each of two splits"


def test_pairs_on_the_sheet_are_spread_over_the_split() -> None:
    assert spread(8, 8) == list(range(8)) and spread(3, 8) == [0, 1, 2] and spread(0, 8) == []
    assert spread(100, 4) == [12, 37, 62, 87]


def test_a_split_without_photographs_has_a_card(tmp_path: Path) -> None:
    splits = {"train": {"count": 8}, "val": {"count": 4, "photographs": False, "references": "styles.json"}}
    own_pairs.write(tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw" / "val" / "images")
    styles = {f"val-{i:03d}.png": f"train-{i // 2:03d}.png" for i in range(4)}
    (tmp_path / "raw" / "styles.json").write_text(json.dumps(styles))
    card = own_pairs.card(splits=splits)
    text = write_dataset_card(prepared(tmp_path, card), tmp_path / "card", card).read_text()
    assert table_row(text, "val")[3:5] == ["24x20 / 24x20 / 40x24", "no photograph x4"]
    assert "- 4 label maps of val name 2 training photographs as references of the wanted style." in text


@pytest.mark.parametrize("what", ["photograph", "id"])
def test_splits_that_overlap_are_refused_but_only_described_of_a_release(tmp_path: Path, what: str) -> None:
    raw = own_pairs.write(tmp_path / "raw")
    for kind in ("images", "labels"):
        own_pairs.file(raw, "val", kind, 3).unlink()
        copied, name = ("train", "val-003") if what == "photograph" else ("val", "train-001")
        shutil.copyfile(own_pairs.file(raw, copied, kind, 1), raw / "val" / kind / f"{name}.png")
    sentence = f"1 {what} in both train and val: " + ("train-001 = val-003" if what == "photograph" else "train-001")
    paper = own_pairs.card()
    with pytest.raises(SisError, match=f"splits overlap: {sentence}"):
        write_dataset_card(prepared(tmp_path, paper), tmp_path / "paper-card", paper)
    assert not (tmp_path / "paper-card").exists()
    if what == "photograph":
        known = own_pairs.card(known_overlap=["val-003"])
        assert f"- {sentence}" in write_dataset_card(prepared(tmp_path, known), tmp_path / "known", known).read_text()
    release = own_pairs.card(prepare={"policy": "sdm", "fidelity": "release"})
    text = write_dataset_card(prepared(tmp_path, release), tmp_path / "release-card", release).read_text()
    assert f"- {sentence}" in text and "No id and no photograph" not in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": [32, 32]}, "size differ"),
        ({"prepare": {"policy": "sdm", "fidelity": "release"}}, "prepare differ"),
        ({"splits": {"train": {"count": 9}, "val": {"count": 4}}}, r"count differ.*train.*run prepare again"),
        ({"splits": {"train": {"count": 8}, "val": {"count": 4}, "test": {"count": 4}}}, "missing splits.*test"),
        ({"name": "quay"}, "splits of harbour, expected those of quay"),
        ({"name": "harbour_b", "subset": "b"}, "splits of harbour, expected those of harbour_b"),
    ],
)
def test_splits_of_another_card_are_refused(harbour: list[Path], tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(SisError, match=reason):
        write_dataset_card(harbour, tmp_path / "card", own_pairs.card(**changes))
    assert not (tmp_path / "card").exists()


def test_another_label_table_is_another_card(harbour: list[Path], tmp_path: Path) -> None:
    table = own_pairs.card().model_dump()["labels"]
    table["classes"][3]["ignored"] = True
    with pytest.raises(SisError, match="another version of the card harbour: labels differ"):
        write_dataset_card(harbour, tmp_path, own_pairs.card(labels=table))


def test_missing_repeated_and_mixed_splits_are_refused(harbour: list[Path], tiny_pairs: Path, tmp_path: Path) -> None:
    card, (train, val) = own_pairs.card(), harbour
    for splits, reason in (
        ([train], "missing splits of harbour: val"),
        ([train, val, val], "repeated splits of harbour: val"),
        ([train, tiny_pairs / "val"], "splits of harbour, scenes_tiny"),
        ([], "no prepared splits"),
    ):
        with pytest.raises(SisError, match=reason):
            write_dataset_card(splits, tmp_path / "card", card)
    with pytest.raises(SisError, match="no dataset called 'harbour'"):
        write_dataset_card(harbour, tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_a_reference_that_is_no_training_photograph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sis.data.layouts import scenes

    monkeypatch.setattr(scenes, "style_reference", lambda seed, split, index, count: f"train-{index + 40:05d}")
    card = dataset_card("scenes_tiny")
    for split in card.splits:
        prepare(card, split, tmp_path, tmp_path / split)
    with pytest.raises(SisError, match=r"40 style references that are no ids of train: train-00048"):
        write_dataset_card([tmp_path / "train", tmp_path / "val"], tmp_path / "card")
