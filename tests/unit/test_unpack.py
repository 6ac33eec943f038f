# SPDX-License-Identifier: Apache-2.0
"""Archives are unpacked whole, go on where they were left, and overwrite nothing that lies in their way."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from small_archives import FILES, archive_of, tree

from sis.data import unpack as unpacking
from sis.data.unpack import unpack
from sis.errors import SisError

KINDS = ["zip", "tar", "tar.gz", "tar.xz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_comes_out_as_it_went_in(tmp_path: Path, kind: str) -> None:
    archive = archive_of(tmp_path / f"x.{kind}", [("a", None), ("nothing", None), *FILES.items()])
    assert unpack(archive, tmp_path / "deep/root") == 4
    assert tree(tmp_path / "deep/root") == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_keeps_what_lies_there_and_completes_it(tmp_path: Path, kind: str) -> None:
    root, archive = tmp_path / "root", archive_of(tmp_path / f"x.{kind}", list(FILES.items()))
    unpack(archive, root)
    (root / "a/train/1.png").unlink()
    (root / "own.txt").write_text("mine")
    before = (root / "b.json").stat()
    assert unpack(archive, root) == 1
    assert tree(root) == {**FILES, "own.txt": b"mine"}
    assert (root / "b.json").stat().st_ino == before.st_ino
    assert unpack(archive, root) == 0


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("content", [b"One", b"on", b"ones", b""])
def test_a_file_with_other_content_is_not_overwritten(tmp_path: Path, kind: str, content: bytes) -> None:
    root, archive = tmp_path / "root", archive_of(tmp_path / f"x.{kind}", list(FILES.items()))
    (root / "a/train").mkdir(parents=True)
    (root / "a/train/1.png").write_bytes(content)
    with pytest.raises(
        SisError, match=rf"other content than in x\.{kind} lies here \[{root}/a/train/1\.png\].*move it"
    ):
        unpack(archive, root)
    assert tree(root) == {"a/train/1.png": content}


def test_large_files_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_SMALL", 100)
    monkeypatch.setattr(unpacking, "_PIECE", 64)
    archive = archive_of(tmp_path / "x.tar", list(FILES.items()))
    assert unpack(archive, tmp_path / "root") == 4
    assert tree(tmp_path / "root") == FILES
    assert unpack(archive, tmp_path / "root") == 0


def test_the_threads_that_write_end_with_the_work(tmp_path: Path) -> None:
    before = threading.active_count()
    unpack(archive_of(tmp_path / "x.zip", [(f"{i}.txt", b"%d" % i) for i in range(100)]), tmp_path / "root")
    assert threading.active_count() == before and len(tree(tmp_path / "root")) == 100


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    unpack(archive_of(tmp_path / "x.zip", list(FILES.items())), tmp_path / "root")
    assert tree(tmp_path / "disk") == FILES


def test_a_leading_dot_means_nothing(tmp_path: Path) -> None:
    unpack(archive_of(tmp_path / "x.tar", [("./", None), ("./a/./b.txt", b"x")]), tmp_path / "root")
    assert tree(tmp_path / "root") == {"a/b.txt": b"x"}


# what lies in the way


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["a", "a/train", "b.json"])
def test_a_link_that_lies_in_the_way_is_refused(tmp_path: Path, name: str, inside: bool) -> None:
    root, elsewhere = tmp_path / "root", (tmp_path / "root" if inside else tmp_path) / "elsewhere"
    elsewhere.mkdir(parents=True)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(elsewhere)
    with pytest.raises(SisError, match=rf"a link or a f.* lies where the archive has a f.* \[{root / name}\]"):
        unpack(archive_of(tmp_path / "x.zip", list(FILES.items())), root)
    assert list(elsewhere.iterdir()) == [] and not [p for p in root.rglob("*") if p.is_file()]


def test_files_and_folders_in_the_way_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.zip", list(FILES.items()))
    for name, folder in [("a", False), ("b.json", True)]:
        root = tmp_path / f"root-{folder}"
        (root / name).mkdir(parents=True) if folder else root.mkdir()
        if not folder:
            (root / name).write_text("x")
        with pytest.raises(SisError, match=rf"lies where the archive has a f.* \[{root / name}\]"):
            unpack(archive, root)
    (tmp_path / "file").touch()
    with pytest.raises(SisError, match=r"not a folder \[.*file\]"):
        unpack(archive, tmp_path / "file")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    archive = archive_of(tmp_path / "x.zip", list(FILES.items()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * 4096 - 1))
    with pytest.raises(SisError, match=r"12,288 bytes to unpack, 12,287 bytes free \[.*root\] - free disk space"):
        unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * 4096))
    assert unpack(archive, tmp_path / "root") == 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert unpack(archive, tmp_path / "root") == 0
