# SPDX-License-Identifier: Apache-2.0
"""The weights folder: files are found, held against their hashes, or refused in one line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_weights import card, store, written

from evaluators.weights import WeightStore
from evaluators.weights_pins import read_pins, write_pins
from sis.errors import SisError

LISTED = Path(__file__).parents[2] / "config" / "weights.yaml"


def refused(found: WeightStore, *words: str, name: str = "net") -> None:
    """`look` and `find` refuse in one line with all these words."""
    for ask in (found.look, found.find):
        with pytest.raises(SisError) as caught:
            ask(name)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_file_is_none_and_the_folder_need_not_exist(tmp_path: Path) -> None:
    assert store(tmp_path / "nowhere").find("net") is None
    assert WeightStore.open(tmp_path / "nowhere", LISTED).find("inception-fid") is None


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    refused(store(tmp_path), "unknown weights 'nett'", "did you mean 'net'", name="nett")


@pytest.mark.parametrize("digits", [8, 16, 64])
def test_the_published_digits_decide(tmp_path: Path, digits: int) -> None:
    digest = written(tmp_path / "net.pth")
    found = store(tmp_path, card(sha256_prefix=digest[:digits])).look("net")
    assert found is not None and found.verified and not found.pinned and found.state == "present"
    assert (found.path, found.sha256, found.converted) == (tmp_path / "net.pth", digest, False)
    other = ("0" if digest[0] != "0" else "1") + digest[1:digits]
    refused(store(tmp_path, card(sha256_prefix=other)), f"expected {other}", "fetch it again from https://example.org")
    other = digest[: digits - 1] + ("0" if digest[digits - 1] != "0" else "1")
    refused(store(tmp_path, card(sha256_prefix=other)), f"sha256 begins with {digest[:digits]}, expected {other}")


def test_without_a_published_hash_a_file_is_unverified_until_it_is_pinned(tmp_path: Path) -> None:
    digest = written(tmp_path / "net.pth")
    found = store(tmp_path).look("net")
    assert found is not None and not found.verified and found.state == "unverified" and found.sha256 == digest
    found = store(tmp_path, net=digest).look("net")
    assert found is not None and found.pinned and not found.verified and found.state == "pinned"
    refused(store(tmp_path, net="0" * 64), f"sha256 begins with {digest[:16]}, pins.yaml has 0000", "replaced it on")


def test_a_pin_holds_beside_a_published_prefix(tmp_path: Path) -> None:
    digest = written(tmp_path / "net.pth")
    pin = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    refused(store(tmp_path, card(sha256_prefix=digest[:8]), net=pin), "pins.yaml has")


def test_a_stated_size_is_compared_before_any_hash(tmp_path: Path) -> None:
    digest = written(tmp_path / "net.pth")
    size = (tmp_path / "net.pth").stat().st_size
    listed = store(tmp_path, card(sha256_prefix=digest, bytes=size))
    assert listed.find("net") == (tmp_path / "net.pth", digest)
    whole = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(whole[:-10])
    refused(listed, f"truncated: {size - 10:,} of {size:,} bytes", "net.pth", "fetch it again")
    (tmp_path / "net.pth").write_bytes(whole + b"x")
    refused(listed, f"another file: {size + 1:,} of {size:,} bytes")
    (tmp_path / "net.pth").write_bytes(whole[:-10])
    refused(store(tmp_path, card(sha256_prefix=digest[:8])), "sha256 begins with")
    (tmp_path / "net.pth").write_bytes(b"")
    refused(listed, "the file is empty", "net.pth")
    refused(store(tmp_path), "the file is empty", "net.pth")


def test_a_changed_byte_is_found_though_size_and_time_stay(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    listed = store(tmp_path, card(sha256_prefix=written(path)[:8]))
    assert listed.find("net") is not None
    times, content = path.stat(), bytearray(path.read_bytes())
    content[100] ^= 1
    with path.open("r+b") as handle:
        handle.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (times.st_mtime_ns, times.st_size, times.st_ino)
    refused(listed, "sha256 begins with")


def test_what_is_not_a_file_is_refused_and_a_link_to_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.mkdir()
    refused(store(tmp_path), "this is a folder, a file of weights is expected", "net.pth")
    path.rmdir()
    path.symlink_to(path)
    refused(store(tmp_path), "a link that leads nowhere", "net.pth")
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    refused(store(tmp_path), "a link that leads nowhere")
    path.unlink()
    os.mkfifo(path)
    refused(store(tmp_path), "no plain file")
    path.unlink()
    digest = written(tmp_path / "elsewhere.pth")
    path.symlink_to(tmp_path / "elsewhere.pth")
    assert store(tmp_path).find("net") == (path, digest)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("x")
    with pytest.raises(SisError, match="not a folder"):
        WeightStore.open(tmp_path / "weights", LISTED)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SisError, match="not a folder"):
        WeightStore.open(tmp_path / "loop", LISTED)


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_files_and_folders_without_permission_are_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder / "net.pth")
        folder.chmod(0o755)
        (folder / "net.pth").chmod(0o000)
        with nobody():
            refused(store(folder), "cannot be read: Permission denied", "net.pth", "check its permissions")
        folder.chmod(0o000)
        with nobody():
            refused(store(folder), "cannot be read: Permission denied", "check its permissions")
        folder.chmod(0o755)


def test_bytes_are_reported_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"x" * 9_000_000)
    counts: list[int] = []
    store(tmp_path).look("net", counts.append)
    assert sum(counts) == 9_000_000 and len(counts) > 1


def test_the_advice_is_one_line_with_what_where_and_what_for(tmp_path: Path) -> None:
    listed = store(tmp_path, card(columns=["miou of x", "fid"], megabytes=1234, fetch="in the folder"))
    assert listed.advice("net") == (
        f"net (1,234 MB): fetch https://example.org/net.pth (in the folder), save it as {tmp_path / 'net.pth'}; "
        "not real until then: miou of x; fid"
    )
    assert "bring your own" in store(tmp_path, card(url=None)).advice("net")


def test_pins_are_written_and_read_back(tmp_path: Path) -> None:
    assert read_pins(tmp_path, ["a"]) == {}
    pins = {"b": "12" * 32, "a": "0e1" + "0" * 61}
    assert write_pins(tmp_path, pins) == tmp_path / "pins.yaml"
    assert read_pins(tmp_path, ["a", "b", "c"]) == pins


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b\n", "must be a YAML list"),
        ('- {name: a, sha256: "12"}\n', "pins.yaml:1"),
        (f'- {{name: a, sha256: "{"1" * 64}"}}\n' * 2, "pins.yaml:2.*a is pinned twice|pinned twice.*pins.yaml:2"),
        (f'- {{name: aa, sha256: "{"1" * 64}"}}\n', "unknown weights 'aa'.*pins.yaml:1.*did you mean 'a'|known: a"),
        (f'\n- {{name: a, sha: "{"1" * 64}"}}\n', "unknown key 'sha'; did you mean 'sha256'.*pins.yaml:2"),
    ],
)
def test_invalid_pins_name_their_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pins.yaml").write_text(text)
    with pytest.raises(SisError, match=words):
        read_pins(tmp_path, ["a"])


def test_an_opened_folder_knows_its_pins(tmp_path: Path) -> None:
    write_pins(tmp_path, {"inception-fid": "1" * 64})
    assert WeightStore.open(tmp_path, LISTED).pins == {"inception-fid": "1" * 64}
    write_pins(tmp_path, {"inception-fi": "1" * 64})
    with pytest.raises(SisError, match="unknown weights 'inception-fi'"):
        WeightStore.open(tmp_path, LISTED)
