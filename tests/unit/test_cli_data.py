# SPDX-License-Identifier: Apache-2.0
"""`sis data`, `sis new dataset`, and the page docs/datasets.md, whose own dataset is written, checked and prepared."""

from __future__ import annotations

import argparse
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import own_pairs
import pytest
import yaml
from PIL import Image

from sis.cli import build_parser, main
from sis.config.files import dataset_card, label_space, project_root
from sis.data.one_hot import FAMILIES
from sis.data.pairs import PairSet
from sis.project.check import check_dataset
from sis.project.scaffold import scaffold
from sis.sampling.ingest import export_pictures

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "datasets.md").read_text()


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    """The card of `own_pairs` as a file, whose raw data lie in `tmp_path / "raw"`."""
    path = tmp_path / "harbour.yaml"
    path.write_text(yaml.safe_dump(own_pairs.card().model_dump(mode="json"), sort_keys=False))
    own_pairs.write(tmp_path / "raw")
    return path


def check(card_file: Path, *words: str) -> int:
    return main(["data", "check", str(card_file), "--root", str(card_file.parent / "raw"), *words])


def test_a_sound_dataset_is_described_on_standard_output(card_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(card_file) == 0
    out, err = capsys.readouterr()
    assert out.startswith("harbour: Harbour; 16x16 (height x width), policy sdm, fidelity paper\n")
    assert out.endswith("ok  harbour: can be prepared\n")
    assert "check harbour/train: 8/8 images" in err and "error" not in err


def test_faults_are_listed_and_the_last_line_is_one_line(card_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(6):
        own_pairs.relabel(own_pairs.file(card_file.parent / "raw", "train", "labels", index), 9)
    assert check(card_file, "--workers", "1") == 2
    out, err = capsys.readouterr()
    assert "6 x label values outside the table" in out and "  and 1 more" in out and "ok  " not in out
    assert err.splitlines()[-1].startswith("error: harbour is unfit, 6 faults, the first: label values outside")


def test_a_quick_check_says_so(card_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(card_file, "--quick") == 0
    assert "quick: all names, but pixels of at most 64 pairs a split" in capsys.readouterr().out


def test_missing_raw_data_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "check", "cityscapes", "--root", str(tmp_path / "nowhere")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no folder with the raw files of cityscapes" in err


def test_a_card_is_written_from_manifests(card_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = card_file.parent
    for split in ("train", "val"):
        words = ["--dataset", str(card_file), "--split", split, "--root", str(folder / "raw")]
        assert main(["prepare", *words, "--out", str(folder / split)]) == 0
    manifests = [str(folder / split / "manifest.json") for split in ("train", "val")]
    command = ["data", "card", *manifests, "--dataset", str(card_file), "--out", str(folder / "card")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"wrote {folder / 'card' / 'card.md'}\n"
    assert main([*command[:3], *command[4:]]) == 2
    assert "missing splits of harbour: val" in capsys.readouterr().err


def test_archives_are_unpacked_into_a_datasets_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_pairs.write(tmp_path / "raw")
    with zipfile.ZipFile(tmp_path / "official.zip", "w") as archive:
        for path in sorted((tmp_path / "raw").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "raw"))
    assert main(["data", "unpack", str(tmp_path / "official.zip"), "--into", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.startswith("24 files of ")
    names = [
        sorted(p.relative_to(tmp_path / f).as_posix() for p in (tmp_path / f).rglob("*.png")) for f in ("raw", "data")
    ]
    assert names[0] == names[1] and len(names[0]) == 24


def test_archives_go_where_the_settings_say(
    project_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project_copy / "config" / "config.yaml").open("a") as settings:
        settings.write(f"roots: {{ade20k: {tmp_path / 'elsewhere'}}}\n")
    with zipfile.ZipFile(tmp_path / "official.zip", "w") as archive:
        archive.writestr("images/readme.txt", "x")
    assert main(["data", "unpack", str(tmp_path / "official.zip"), "--into", "ade20k_512"]) == 0
    assert (tmp_path / "elsewhere" / "images" / "readme.txt").read_text() == "x"
    assert main(["data", "unpack", str(tmp_path / "official.zip"), "--into", "ade20"]) == 2
    assert "no dataset called 'ade20'" in capsys.readouterr().err and not Path("ade20").exists()


def test_an_archive_that_leaves_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        archive.writestr("../outside.txt", "x")
    assert main(["data", "unpack", str(tmp_path / "hostile.zip"), "--into", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "outside.txt").exists()


def test_every_action_and_option_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    (actions,) = [a for a in commands.choices["data"]._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(actions.choices) == {"check", "card", "unpack"}
    assert not [(n, a.dest) for n, p in actions.choices.items() for a in p._actions if not a.help]
    for name in actions.choices:
        with pytest.raises(SystemExit) as caught:
            main(["data", name, "--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: sis data {name}")


def test_the_list_of_datasets_shows_size_counts_policy_and_subset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]}
    title = dataset_card("scenes_tiny").title
    assert rows["scenes_tiny"] == f"scenes_tiny 32x32 train 48, val 16 exact {title} [subset: tiny]"
    assert "256x512 train 2,975, val 500 sdm_aspect (release)" in rows["cityscapes_release"]


@pytest.mark.parametrize(("instances", "what"), [(False, "photographs"), (True, "instance maps")])
def test_what_pairs_do_not_have_is_not_exported(
    card_file: Path, capsys: pytest.CaptureFixture[str], instances: bool, what: str
) -> None:
    from sis.data.prepare import prepare

    folder = card_file.parent
    shutil.rmtree(folder / "raw" / "val" / "images")
    card = own_pairs.card(splits={"train": {"count": 8}, "val": {"count": 4, "photographs": False}})
    prepare(card, "val", folder / "raw", folder / "val")
    words = ["export", str(folder / "val"), "--out", str(folder / "out"), *(["--instances"] if instances else [])]
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: harbour/val has no {what} to export")
    assert not (folder / "out").exists()
    assert export_pictures(folder / "val", folder / "out", labels=True) == 4


def test_a_new_dataset_is_a_card_of_ones_own_folders(project_copy: Path) -> None:
    (path,) = scaffold("dataset", "my_pairs")
    card = dataset_card("my_pairs")
    assert path == project_copy / "config" / "datasets" / "my_pairs.yaml" and card.layout == "folder"
    assert len(path.read_text().splitlines()) <= 20
    counts = {name: split.count for name, split in card.splits.items()}
    own_pairs.write(project_copy / "data" / "my_pairs", counts)
    assert list(check_dataset("my_pairs"))[-1] == "no image is in two splits"


# The page.


def example() -> tuple[str, str]:
    """File name and text of the page's card."""
    ((name, text),) = re.findall(r"```yaml\n# (config/datasets/\S+)\n(.*?)```", PAGE, re.DOTALL)
    return name, text


def test_the_pages_own_dataset_is_complete(project_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text = example()
    (project_copy / name).write_text(text)
    card, space = dataset_card("harbour"), label_space(dataset_card("harbour").labels)
    (tree,) = re.findall(r"```\n(data/harbour/.*?)```", PAGE, re.DOTALL)
    files = re.findall(r"data/harbour/(train|val)/(images|labels)/(\d+)\.(jpg|png)", tree)
    assert len(files) == 4
    for split, kind, first, end in files:
        for index in range(card.splits[split].count):
            draw = np.random.default_rng([int(first) + index, len(kind)])
            shape = (80, 100, 3) if kind == "images" else (80, 100)
            picture = Image.fromarray(draw.integers(0, 256 if kind == "images" else space.count, shape, np.uint8))
            own_pairs.save(picture, project_copy / f"data/harbour/{split}/{kind}/{int(first) + index:04d}.{end}")
    assert main(["data", "check", "harbour"]) == 0
    assert capsys.readouterr().out.endswith("ok  harbour: can be prepared\n")
    out = project_copy / "pairs" / "train"
    assert main(["prepare", "--dataset", "harbour", "--split", "train", "--out", str(out)]) == 0
    pair = PairSet.open(out).get(0)
    assert (pair.image_id, pair.image.shape, pair.label.shape) == ("0001", (64, 96, 3), (64, 96))


def table(heading: str, after: str = "") -> dict[str, list[str]]:
    """The page's first table after some words, by the names in its first column."""
    part = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0].split(after, 1)[1]
    rows = next(block for block in part.split("\n\n") if block.startswith("|")).splitlines()[2:]
    cells = [[c.strip() for c in row.split("|")[1:-1]] for row in rows]
    return {name: row for row in cells for name in re.findall(r"`(\w+)`", row[0])}


def test_the_pages_table_of_datasets_is_true() -> None:
    rows = table("Which there are", "\n")
    cards = [p.stem for p in (project_root() / "config" / "datasets").glob("*.yaml")]
    assert set(rows) == {name for name in cards if not name.endswith(("_release", "_mini"))}
    for name, (_, size, counts, policy, _) in rows.items():
        card = dataset_card(name)
        if card.layout != "scenes":
            assert size == f"{card.size[0]} x {card.size[1]}", name
            assert counts == f"{card.splits['train'].count:,} / {card.splits['val'].count:,}", name
        assert policy == f"`{card.prepare.policy}`" + (", edges" if card.edges else ""), name


def test_the_pages_table_of_label_spaces_is_true() -> None:
    rows = table("Label spaces", "\n")
    assert set(rows) == {p.stem for p in (project_root() / "config" / "labels").glob("*.yaml")}
    for name, (_, ids, width, scored, _, void, dead) in rows.items():
        space = label_space(name)
        assert (int(ids), int(width)) == (space.count, space.width), name
        assert int(scored.split()[0]) == len(space.evaluated_ids), name
        assert void.split(",")[0] == ("none" if space.void is None else str(space.void)), name
        assert dead == (", ".join(str(c.id) for c in space.classes if c.dead) or "-"), name


def test_the_page_names_the_release_cards_and_the_one_hot_orders() -> None:
    named = set(re.findall(r"`(\w+_release)`", PAGE.split("## Paper and release", 1)[1]))
    assert named == {p.stem for p in (project_root() / "config" / "datasets").glob("*_release.yaml")}
    assert set(table("Label spaces", "Published networks")) == set(FAMILIES.values())
