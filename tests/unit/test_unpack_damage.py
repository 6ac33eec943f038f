# SPDX-License-Identifier: Apache-2.0
"""Damaged archives are refused, and never give a file other content than was packed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_archives import FILES, archive_of, tree

from sis.data.unpack import unpack
from sis.errors import SisError


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with pytest.raises(SisError, match=rf"No such file.*\[{archive}\]"):
        unpack(archive, tmp_path / "root")
    for content in (b"", b"<html>404</html>" * 99, b"PK\x03\x04" + b"\0" * 99, b"\x1f\x8b" + b"\0" * 99):
        archive.write_bytes(content)
        with pytest.raises(SisError, match=rf"neither zip nor tar.*\[{archive}\] - fetch it again"):
            unpack(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


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
