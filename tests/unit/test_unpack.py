# SPDX-License-Identifier: Apache-2.0
"""Archives are unpacked whole, go on where they were left, and are refused before anything is written."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sis.data import unpack as unpacking
from sis.data.unpack import unpack
from sis.errors import SisError

FILES = {"a/train/1.png": b"one", "a/train/2.png": b"two" * 1000, "a/empty.txt": b"", "b.json": b"{}"}
KINDS = ["zip", "tar", "tar.gz", "tar.xz"]
#: name, content; None is a folder, a text is where a link leads, b"" upwards a file.
Members = list[tuple[str, bytes | str | None]]


def archive_of(path: Path, members: Members, hard: bool = False) -> Path:
    """Write a zip or tar by the path's ending."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                if content is None:
                    info = zipfile.ZipInfo(name.rstrip("/") + "/")
                info.external_attr = (stat.S_IFLNK if isinstance(content, str) else 0) << 16
                archive.writestr(info, content or b"")
        return path
    mode = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def tree(root: Path) -> dict[str, bytes]:
    assert not [p for p in root.rglob("*") if p.is_symlink()]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


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


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_promises_too_much_is_refused(
    refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(unpacking, "MAX_BYTES", 5_000)
    refuse([("a", bytes(3_000)), ("b", bytes(3_000))], "promises more than 5,000 bytes", kind)


# damaged archives


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with pytest.raises(SisError, match=rf"No such file.*\[{archive}\]"):
        unpack(archive, tmp_path / "root")
    for content in (b"", b"<html>404</html>" * 99, b"PK\x03\x04" + b"\0" * 99, b"\x1f\x8b" + b"\0" * 99):
        archive.write_bytes(content)
        with pytest.raises(SisError, match=rf"neither zip nor tar.*\[{archive}\] - fetch it again"):
            unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_without_files_is_refused(refuse: Callable[..., None], kind: str) -> None:
    refuse([("a", None)], "no files in this archive", kind)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_a_cut_archive_is_refused_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    data = archive_of(tmp_path / f"x.{kind}", list(FILES.items())).read_bytes()
    for share in range(1, 20):
        cut = tmp_path / f"cut.{kind}"
        cut.write_bytes(data[: len(data) * share // 20])
        with pytest.raises(SisError, match="fetch it again"):
            unpack(cut, tmp_path / "root")
        assert not (tmp_path / "root").exists()


def test_a_cut_tar_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = archive_of(tmp_path / "x.tar", [("one", b"1" * 2000), ("two", b"2" * 2000)]).read_bytes()
    assert data[5120:5632] == bytes(512)  # where the end is marked, after two headers and two contents
    for length in (100, 1000, 2559, 2560, 2600, 4000, 5119, 5120, 5631):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        with pytest.raises(SisError, match="fetch it again"):
            unpack(tmp_path / "cut.tar", tmp_path / "root")
        assert not (tmp_path / "root").exists()


def test_a_torn_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.tar", [("one", b"1"), ("two", b"2")])
    data = bytearray(archive.read_bytes())
    data[1024 + 150] ^= 1  # the second header's checksum
    archive.write_bytes(data)
    with pytest.raises(SisError, match="it ends too early"):
        unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_flipped_bit_in_a_compressed_tar_never_gives_other_content(tmp_path: Path) -> None:
    files = {"one": bytes(range(256)) * 8, "two": b"2"}
    archive = archive_of(tmp_path / "x.tar.gz", list(files.items()))
    data, root, refused = archive.read_bytes(), tmp_path / "root", 0
    for position in range(len(data)):
        archive.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            unpack(archive, root)
        except SisError as error:
            assert f"[{archive}]" in str(error) and not root.exists()
            refused += 1
        else:
            assert tree(root) == files
            shutil.rmtree(root)
    assert refused > 0.9 * len(data)


def test_a_member_shorter_than_the_archive_says_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.zip", [("a.txt", b"content")])
    data = bytearray(archive.read_bytes())
    sizes = data.index(b"PK\x01\x02") + 24
    assert data[sizes : sizes + 4] == b"\x07\0\0\0"
    data[sizes] = 9
    archive.write_bytes(data)
    with pytest.raises(SisError, match=r"'a\.txt' has 7 of 9 bytes"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_a_damaged_member_never_gets_its_name(tmp_path: Path) -> None:
    """The listing is whole, only the checksum of the content tells; what came before it is good and stays."""
    archive = archive_of(
        tmp_path / "x.zip", [("a.txt", b"first"), ("b.txt", bytes(range(256)) * 4), ("c.txt", b"last")]
    )
    data = bytearray(archive.read_bytes())
    data[data.index(b"b.txt") + 40] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(SisError, match=r"'b.txt' is damaged.*x\.zip\] - fetch it again"):
        unpack(archive, tmp_path / "root")
    assert tree(tmp_path / "root").items() <= {"a.txt": b"first"}.items()
