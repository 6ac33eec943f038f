# SPDX-License-Identifier: Apache-2.0
"""What an archive lists is judged before anything is written: its names, links, devices and sizes."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from small_archives import FILES, Members, archive_of, tree

from sis.data import unpack as unpacking
from sis.data.unpack import unpack
from sis.errors import SisError


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., None]:
    """`refuse(members, words)`: unpacking must fail in one line with these words and write nothing at all."""

    def check(members: Members, words: str, kind: str = "zip", hard: bool = False) -> None:
        archive = archive_of(tmp_path / f"bad.{kind}", members, hard)
        with pytest.raises(SisError, match=words) as refusal:
            unpack(archive, tmp_path / "root")
        assert "\n" not in str(refusal.value) and str(archive) in str(refusal.value)
        assert not (tmp_path / "root").exists()

    return check


# names


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        "../x.txt",
        "a/../../x.txt",
        "a/../x.txt",
        "/x.txt",
        "//x.txt",
        "a\\..\\x.txt",
        "\\x.txt",
        "C:/x.txt",
        "C:x",
        "..",
    ],
)
def test_a_member_that_leads_outside_is_refused(refuse: Callable[..., None], name: str, kind: str) -> None:
    refuse([("good.txt", b"1"), (name, b"2"), ("later.txt", b"3")], "leads outside the folder", kind)


def test_a_folder_that_leads_outside_is_refused(refuse: Callable[..., None]) -> None:
    refuse([("good.txt", b"1"), ("../out", None)], "leads outside the folder")


@pytest.mark.parametrize("name", ["a\nb.txt", "a\x1b[2Jb.txt", "a\x7f.txt"])
def test_control_characters_in_a_name_are_refused(refuse: Callable[..., None], name: str) -> None:
    refuse([("good.txt", b"1"), (name, b"2")], "control characters")


def test_a_name_that_a_library_would_cut_is_refused(tmp_path: Path) -> None:
    """Python's zip reader cuts a name at its first NUL, and then it ends otherwise than it did."""
    archive = archive_of(tmp_path / "x.zip", [("a.pngX.sh", b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"a.pngX.sh", b"a.png\0.sh"))
    with pytest.raises(SisError, match="control characters"):
        unpack(archive, tmp_path / "root")


def test_a_name_too_long_for_a_disk_is_refused(refuse: Callable[..., None]) -> None:
    refuse([("good.txt", b"1"), ("a/" + "é" * 120 + ".txt", b"2")], "too long a name")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("again", ["a/x.txt", "./a/x.txt", "a//x.txt"])
def test_a_name_that_stands_twice_is_refused(refuse: Callable[..., None], kind: str, again: str) -> None:
    refuse([("a/x.txt", b"1"), (again, b"1")], "'a/x.txt' stands twice", kind)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("a/x.txt", "a/X.txt", "'a/x.txt' and 'a/X.txt'"),
        ("Train/x.txt", "train/y.txt", "'Train' and 'train'"),
        ("t/Val/x.txt", "t/VAL/sub/y.txt", "'t/Val' and 't/VAL'"),
        ("é.txt", "e\u0301.txt", "differ in case only"),
        ("A", "a/x.txt", "'A' and 'a'"),
    ],
)
def test_names_that_differ_in_case_only_are_refused(
    refuse: Callable[..., None], one: str, other: str, words: str
) -> None:
    refuse([(one, b"1"), (other, b"2")], words)


@pytest.mark.parametrize(
    "members", [[("a", b"1"), ("a/x", b"2")], [("a/x", b"2"), ("a", b"1")], [("a", b"1"), ("a/", None)]]
)
def test_a_name_that_is_a_file_and_a_folder_is_refused(refuse: Callable[..., None], members: Members) -> None:
    refuse(members, "'a' is both a file and a folder", "tar")


# links, devices, encryption


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("target", ["../out.txt", "../../out.txt", "b/../../../x", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused(refuse: Callable[..., None], kind: str, target: str) -> None:
    words = "leads outside the folder" if target != "../out.txt" else "leads to no file of the archive"
    refuse([("good.txt", b"1"), ("a/link", target)], f"the link 'a/link' {words}", kind)


@pytest.mark.parametrize("target", ["../good.txt", "/etc/passwd"])
def test_a_hard_link_out_of_the_folder_is_refused(refuse: Callable[..., None], target: str) -> None:
    refuse([("good.txt", b"1"), ("a/link", target)], "the link 'a/link' leads outside the folder", "tar", hard=True)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("target", ["missing.txt", "a", ".", "", "link", "loop"])
def test_a_link_to_anything_but_a_file_is_refused(refuse: Callable[..., None], kind: str, target: str) -> None:
    members: Members = [("a/good.txt", b"1"), ("link", target), ("loop", "link")]
    refuse(members, "leads to no file of the archive", kind)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_link_to_a_file_of_the_archive_becomes_a_copy(tmp_path: Path, kind: str) -> None:
    members: Members = [("a/near", "x.txt"), ("far", "a/../a/near"), ("a/x.txt", b"content"), ("b/up", "../a/x.txt")]
    root, archive = tmp_path / "root", archive_of(tmp_path / f"x.{kind}", members)
    assert unpack(archive, root) == 4
    assert tree(root) == dict.fromkeys(["a/near", "far", "a/x.txt", "b/up"], b"content")
    assert unpack(archive, root) == 0


def test_a_hard_link_starts_at_the_top_of_the_archive(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.tar", [("a/x.txt", b"content"), ("a/link", "a/x.txt")], hard=True)
    unpack(archive, tmp_path / "root")
    assert tree(tmp_path / "root") == dict.fromkeys(["a/x.txt", "a/link"], b"content")


def test_nothing_is_written_through_a_link_of_the_archive(refuse: Callable[..., None]) -> None:
    refuse([("a", "."), ("a/x.txt", b"1")], "'a' is both a file and a folder", "tar")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_a_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("good.txt"))
        info = tarfile.TarInfo("device")
        info.type = kind
        archive.addfile(info)
    with pytest.raises(SisError, match="'device' is neither a file, a folder nor a link"):
        unpack(tmp_path / "x.tar", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_device_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("device")
        info.external_attr = stat.S_IFCHR << 16
        archive.writestr(info, b"")
    with pytest.raises(SisError, match="'device' is neither a file, a folder nor a link"):
        unpack(tmp_path / "x.zip", tmp_path / "root")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.zip", list(FILES.items()))
    data = bytearray(archive.read_bytes())
    for head, offset in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)]:
        data[data.index(head) + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(SisError, match="encrypted archive"):
        unpack(archive, tmp_path / "root")


# too much and nothing


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_promises_too_much_is_refused(
    refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 5_000)
    refuse([("a", bytes(3_000)), ("b", bytes(3_000))], "promises more than 5,000 bytes", kind)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_without_files_is_refused(refuse: Callable[..., None], kind: str) -> None:
    refuse([("a", None)], "no files in this archive", kind)
