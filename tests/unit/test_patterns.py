# SPDX-License-Identifier: Apache-2.0
"""Files by patterns: found by their names, once each, and never outside the dataset's root."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sis.data.patterns import file_below, matches
from sis.errors import SisError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(root: Path, patterns: str | list[str]) -> dict[str, str]:
    return {image_id: path.relative_to(root).as_posix() for image_id, path in matches(root, patterns).items()}


def test_ids_are_what_stands_for_id_and_come_back_sorted(root: Path) -> None:
    fill(root, "images/b.jpg", "images/a-2.jpg", "images/a.jpg", "images/a10.jpg", "images/B.jpg")
    ids = ["B", "a", "a-2", "a10", "b"]
    assert list(found(root, "images/{id}.jpg").items()) == [(i, f"images/{i}.jpg") for i in ids]


def test_a_star_stands_for_one_folder_name(root: Path) -> None:
    fill(root, "left/train/ulm/ulm_1_left.png", "left/train/bonn/bonn_1_left.png", "left/train/deep/er/x_left.png")
    fill(root, "left/train/y_left.png", "left/val/z_left.png")
    expected = {"bonn_1": "left/train/bonn/bonn_1_left.png", "ulm_1": "left/train/ulm/ulm_1_left.png"}
    assert found(root, "left/train/*/{id}_left.png") == expected
    assert found(root, "left/*/{id}_left.png") == {"y": "left/train/y_left.png", "z": "left/val/z_left.png"}
    assert found(root, "l*t/tr*n/b*/{id}_left.png") == {"bonn_1": "left/train/bonn/bonn_1_left.png"}


def test_a_star_in_a_file_name_stands_for_any_letters(root: Path) -> None:
    fill(root, "a_b_7.png", "c_8.png", "d.png")
    assert found(root, "{id}_*.png") == {"a_b": "a_b_7.png", "c": "c_8.png"}


def test_a_final_star_stands_for_the_endings_of_pictures(root: Path) -> None:
    fill(root, "i/a.png", "i/b.JPG", "i/c.Jpeg", "i/d.v2.jpg", "i/e.gif", "i/f.txt", "i/g", "i/h.jpg.bak", "i/.jpg")
    assert list(found(root, "i/{id}.*")) == ["a", "b", "c", "d.v2"]


def test_every_other_letter_of_a_pattern_stands_for_itself(root: Path) -> None:
    fill(root, "a+(1)/x[0].png", "a+(1)/x0.png", "a+(1)/x[0]Xpng")
    assert found(root, "a+(1)/{id}[0].png") == {"x": "a+(1)/x[0].png"}


def test_hidden_files_and_folders_are_passed_over(root: Path) -> None:
    fill(root, "t/a/1.png", "t/.b/2.png", "t/a/.3.png", "t/a/.DS_Store", "t/a/Thumbs.db")
    assert list(found(root, "t/*/{id}.png")) == ["1"]


def test_a_folder_that_is_named_like_a_file_is_passed_over(root: Path) -> None:
    fill(root, "t/a.png", "t/b.png/c.png")
    assert list(found(root, "t/{id}.png")) == ["a"]


def test_several_patterns_are_a_union(root: Path) -> None:
    fill(root, "train/b.png", "val/a.png")
    assert found(root, ["train/{id}.png", "val/{id}.png"]) == {"a": "val/a.png", "b": "train/b.png"}
    assert list(found(root, ["train/{id}.png", "*/{id}.png"])) == ["a", "b"]


def test_a_missing_folder_is_named_with_its_pattern(root: Path) -> None:
    fill(root, "images/train/a.png", "a.txt")
    for pattern, folder in [
        ("images/val/{id}.png", "images/val"),
        ("img/*/{id}.png", "img"),
        ("a.txt/{id}.png", "a.txt"),
    ]:
        with pytest.raises(SisError) as refusal:
            matches(root, pattern)
        assert f"missing folder of the pattern {pattern!r} [{root / folder}]" in str(refusal.value)


def test_a_root_that_is_missing_or_a_file_is_named(root: Path) -> None:
    fill(root, "file")
    for place in (root / "nowhere", root / "file"):
        with pytest.raises(SisError, match=rf"no such folder \[{place}\].*roots:"):
            matches(place, "{id}.png")


@pytest.mark.parametrize("pattern", ["t/{id}.jpg", "t/*/{id}.png", "*/u/{id}.png", ["t/{id}.png", "t/{id}.jpg"]])
def test_a_pattern_that_fits_nothing_is_refused(root: Path, pattern: str | list[str]) -> None:
    fill(root, "t/a.png")
    last = pattern if isinstance(pattern, str) else pattern[-1]
    with pytest.raises(SisError) as refusal:
        matches(root, pattern)
    assert f"no file fits the pattern {last!r} [{root}]" in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (("t/x/a.png", "t/y/a.png"), "t/*/{id}.png"),
        (("t/a.png", "t/a.jpg"), "t/{id}.*"),
        (("t/a_1.png", "t/a_2.png"), "t/{id}_*.png"),
        (("t/a.png", "v/a.png"), ["t/{id}.png", "v/{id}.png"]),
    ],
)
def test_an_id_that_stands_twice_is_refused_with_both_files(
    root: Path, names: tuple[str, str], patterns: str | list[str]
) -> None:
    fill(root, *names, *(n.replace("a", "b", 1) for n in names[:1]))
    with pytest.raises(SisError, match="id 'a' twice") as refusal:
        matches(root, patterns)
    assert all(name in str(refusal.value) for name in names)


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    fill(root, "t/a.png")
    (tmp_path / "link").symlink_to(root)
    assert found(tmp_path / "link", "t/{id}.png") == {"a": "t/a.png"}


def test_links_inside_the_root_are_followed(root: Path) -> None:
    fill(root, "store/a.png", "t/b.png")
    (root / "t/c.png").symlink_to("../store/a.png")
    (root / "u").symlink_to(root / "t")
    assert list(found(root, "t/{id}.png")) == ["b", "c"]
    assert list(found(root, "u/{id}.png")) == ["b", "c"]


@pytest.mark.parametrize("pattern", ["t/{id}.png", "*/{id}.png"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_that_leaves_the_root_is_refused(root: Path, tmp_path: Path, pattern: str, absolute: bool) -> None:
    fill(root, "t/a.png")
    fill(tmp_path, "outside.png")
    (root / "t/x.png").symlink_to(tmp_path / "outside.png" if absolute else "../../outside.png")
    with pytest.raises(SisError, match=r"leaves the dataset's root") as refusal:
        matches(root, pattern)
    assert str(root / "t/x.png") in str(refusal.value) and str(tmp_path / "outside.png") in str(refusal.value)


@pytest.mark.parametrize("pattern", ["link/{id}.png", "*/{id}.png", "link/sub/{id}.png", "l*/sub/{id}.png"])
def test_a_folder_that_leaves_the_root_is_refused(root: Path, tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "rooted/a.png", "rooted/sub/a.png")  # a name that begins like the root's
    (root / "link").symlink_to(tmp_path / "rooted")
    with pytest.raises(SisError, match=rf"leaves the dataset's root.*{root}/link"):
        matches(root, pattern)


def test_a_link_that_does_not_fit_is_nobodys_business(root: Path, tmp_path: Path) -> None:
    fill(root, "t/a.png")
    (root / "t/README").symlink_to(tmp_path)
    (root / "other").symlink_to(tmp_path)
    assert list(found(root, "t/{id}.png")) == ["a"]


def test_a_link_to_nothing_or_to_itself_is_refused(root: Path) -> None:
    fill(root, "t/a.png")
    for target in ("nowhere.png", "x.png"):
        (root / "t/x.png").symlink_to(target)
        with pytest.raises(SisError, match=rf"leads to nothing \[{root}/t/x.png\]"):
            matches(root, "t/{id}.png")
        (root / "t/x.png").unlink()


def test_pipes_and_sockets_are_refused_without_being_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "t/a.png")
    os.mkfifo(root / "t/x.png")
    with pytest.raises(SisError, match=rf"neither a file nor a folder \[{root}/t/x.png\]"):
        matches(root, "t/{id}.png")
    (root / "t/x.png").unlink()
    monkeypatch.chdir(root / "t")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("y.png")
        with pytest.raises(SisError, match="neither a file nor a folder"):
            matches(root, "t/{id}.png")


def test_one_file_is_found_below_the_root(root: Path, tmp_path: Path) -> None:
    fill(root, "a/map.json")
    fill(tmp_path, "outside.json")
    assert file_below(root, "a/map.json") == root / "a/map.json"
    (root / "link.json").symlink_to(tmp_path / "outside.json")
    for name, words in [
        ("b.json", "no such file"),
        ("a", "no such file"),
        ("../outside.json", "leaves"),
        ("link.json", "leaves"),
    ]:
        with pytest.raises(SisError, match=words):
            file_below(root, name)
