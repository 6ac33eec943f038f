# SPDX-License-Identifier: Apache-2.0
"""Manifests and atomic files: an artefact is whole or it counts as absent; one changed bit is noticed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from sis.data.atomic import atomic_path, write_bytes_atomic, write_text_atomic
from sis.data.manifest import manifest_path, publish_file, read_manifest, stable_hash, write_manifest
from sis.data.provenance import RunRecord
from sis.errors import SisError

RUN = {"argv": ["sis", "test"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact of two files."""
    place = tmp_path / "artefact"
    place.mkdir()
    (place / "a.bin").write_bytes(b"alpha" * 100)
    (place / "b.bin").write_bytes(b"beta" * 100)
    write_manifest(place, "images", [place / "b.bin", place / "a.bin"], {"rows": 2}, RUN)
    return place


def forge(path: Path, body: dict) -> None:
    """Write a manifest that is false and yet consistent with itself."""
    body["digest"] = stable_hash({k: v for k, v in body.items() if k != "digest"}, 64)
    path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")


def test_a_manifest_says_what_was_written(folder: Path) -> None:
    found = read_manifest(folder, "images")
    assert list(found.files) == ["a.bin", "b.bin"]
    assert (found.meta, found.run, found.artefact) == ({"rows": 2}, RUN, "images")
    assert [p.read_bytes()[:4] for p in found.paths()] == [b"alph", b"beta"]
    assert read_manifest(folder / "manifest.json").digest == found.digest


@pytest.mark.parametrize("position", [0, 250, 499])
def test_one_flipped_bit_in_a_file_is_noticed(folder: Path, position: int) -> None:
    data = bytearray((folder / "a.bin").read_bytes())
    data[position] ^= 1
    (folder / "a.bin").write_bytes(data)
    with pytest.raises(SisError, match=r"sha256 differs.*a\.bin"):
        read_manifest(folder)
    assert read_manifest(folder, verify=False).meta == {"rows": 2}


def test_a_cut_file_is_called_truncated(folder: Path) -> None:
    os.truncate(folder / "b.bin", 10)
    with pytest.raises(SisError, match="truncated: 10 of 400 bytes"):
        read_manifest(folder)


def test_a_grown_file_is_called_changed(folder: Path) -> None:
    with (folder / "b.bin").open("ab") as handle:
        handle.write(b"!")
    with pytest.raises(SisError, match="changed: 401 of 400 bytes"):
        read_manifest(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "a.bin").unlink()
    with pytest.raises(SisError, match=r"missing files: a\.bin"):
        read_manifest(folder)


def test_a_missing_manifest_means_a_missing_artefact(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="no such artefact"):
        read_manifest(tmp_path)
    with pytest.raises(SisError, match="no such artefact"):
        read_manifest(tmp_path / "model.safetensors", "model")


def test_no_bit_of_a_manifest_can_flip_unnoticed(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(SisError):
            read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"files": 3}', '{"files": {"a": 1}}', "\x00\x01"])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SisError, match="unreadable manifest"):
        read_manifest(folder)


def test_an_edited_fact_is_noticed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 2', '"rows": 3'))
    with pytest.raises(SisError, match="altered"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "deep/file"])
def test_a_manifest_cannot_name_files_outside_its_folder(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body["files"] = {name: {"bytes": 1, "sha256": "00"}}
    forge(path, body)
    with pytest.raises(SisError, match="unreadable manifest"):
        read_manifest(folder)


def test_another_kind_or_version_is_refused(folder: Path) -> None:
    with pytest.raises(SisError, match="this is a images artefact, expected pairs"):
        read_manifest(folder, "pairs")
    path = folder / "manifest.json"
    body = json.loads(path.read_text()) | {"version": 99}
    forge(path, body)
    with pytest.raises(SisError, match="version 99"):
        read_manifest(folder)


def test_unknown_kinds_are_never_written(folder: Path) -> None:
    with pytest.raises(SisError, match=r"unknown artefact kind 'image'.*did you mean 'images'"):
        write_manifest(folder, "image", [], {}, RUN)


def test_a_single_file_carries_a_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"weights")
        publish_file(temporary, path, "model", {"steps": 1}, RUN)
    assert manifest_path(path) == tmp_path / "model.safetensors.manifest.json"
    assert read_manifest(path, "model").paths() == [path]
    assert manifest_path(manifest_path(path)) == manifest_path(path)
    path.write_bytes(b"weighty")
    with pytest.raises(SisError, match="sha256 differs"):
        read_manifest(path)


def test_leftovers_of_a_killed_writer_are_swept_when_the_artefact_is_finished(folder: Path) -> None:
    (folder / ".a.bin.tmp-12345").write_bytes(b"half")
    write_manifest(folder, "images", [folder / "a.bin"], {}, RUN)
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", "b.bin", "manifest.json"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text_atomic(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"x")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "cannot")]
)
def test_a_full_or_read_only_disk_is_a_refusal(tmp_path: Path, number: int, reason: str) -> None:
    with pytest.raises(SisError, match=f"{reason}.*out.bin"), atomic_path(tmp_path / "out.bin"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((SisError, OSError), match="file"):
        write_bytes_atomic(tmp_path / "file" / "x", b"")


def test_equal_data_have_equal_names_in_any_order_of_keys() -> None:
    assert stable_hash({"a": 1, "b": [1, 2]}) == stable_hash({"b": [1, 2], "a": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": 1.5}) != stable_hash({"a": "1"})
    assert stable_hash(["é"]) == "d8f81e7a"
    assert len(stable_hash([], 16)) == 16


def test_a_run_record_holds_who_when_where_and_how() -> None:
    record = RunRecord.start(["sis", "x"], seeds={"sampling": 3}, device="cpu").finish()
    assert record["argv"] == ["sis", "x"] and record["seeds"] == {"sampling": 3} and record["device"] == "cpu"
    assert str(record["started"]) <= str(record["ended"])
    assert {"commit", "lock_sha256", "host", "seconds", "peak_memory_bytes", "threads", "versions"} <= set(record)
    assert json.loads(json.dumps(record)) == record
