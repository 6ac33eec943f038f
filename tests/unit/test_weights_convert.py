# SPDX-License-Identifier: Apache-2.0
"""Converted weights: equal to their source, tied to it by its sha256, and nothing in a source is run."""

from __future__ import annotations

import json
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_weights import Trap, card, store, tensors, written

from evaluators.weights_bytes import silent
from evaluators.weights_check import convert
from evaluators.weights_converted import converted_path, read_origin
from sis.data.weight_files import read_weights
from sis.errors import SisError


@pytest.mark.parametrize("legacy", [False, True])
def test_a_conversion_keeps_every_weight_and_names_its_source(tmp_path: Path, legacy: bool) -> None:
    digest = written(tmp_path / "net.pth", legacy=legacy)
    listed = store(tmp_path, card(sha256_prefix=digest[:8]))
    out = convert(listed, "net")
    assert out == tmp_path / "net.pth.safetensors" == converted_path(tmp_path / "net.pth")
    found, wanted = read_weights(out).tensors, tensors()
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    origin = read_origin(out, silent)
    assert (origin.file, origin.sha256, origin.bytes) == ("net.pth", digest, (tmp_path / "net.pth").stat().st_size)


def test_the_converted_file_is_preferred_and_keeps_the_sources_identity(tmp_path: Path) -> None:
    digest = written(tmp_path / "net.pth")
    for listed in (store(tmp_path, card(sha256_prefix=digest[:8])), store(tmp_path, net=digest), store(tmp_path)):
        before = listed.look("net")
        out = convert(listed, "net")
        after = listed.look("net")
        assert before is not None and after is not None
        assert (after.path, after.converted, after.sha256, after.state) == (out, True, digest, before.state)
        source = (tmp_path / "net.pth").read_bytes()
        (tmp_path / "net.pth").unlink()
        assert listed.find("net") == (out, digest), "the pickle is not needed any more"
        (tmp_path / "net.pth").write_bytes(source)
        out.unlink()


def test_conversions_of_the_same_file_have_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path / "net.pth")
    first = convert(store(tmp_path), "net").read_bytes()
    assert convert(store(tmp_path), "net").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pth", "net.pth.safetensors"]


def test_whoever_may_read_the_source_may_read_the_conversion(tmp_path: Path) -> None:
    written(tmp_path / "net.pth")
    for mode in (0o644, 0o640):
        (tmp_path / "net.pth").chmod(mode)
        assert convert(store(tmp_path), "net").stat().st_mode & 0o777 == mode


def test_a_conversion_of_another_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "net.pth")
    convert(store(tmp_path), "net")
    digest = written(tmp_path / "net.pth", {"other": torch.ones(3)})
    for listed in (store(tmp_path, card(sha256_prefix=digest[:8])), store(tmp_path, net=digest)):
        with pytest.raises(SisError, match=r"made from a file whose sha256 begins with .*net\.pth\.safetensors"):
            listed.look("net")
    with pytest.raises(SisError, match=r"not made from net\.pth beside it.*delete one of the two"):
        store(tmp_path).look("net")
    convert(store(tmp_path), "net")
    assert store(tmp_path).find("net") == (tmp_path / "net.pth.safetensors", digest)


@pytest.mark.parametrize("way", ["zip", "old", "bare"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, way: str) -> None:
    sentinel, path = tmp_path / "was run", tmp_path / "net.pth"
    content = {"weight": torch.zeros(2, 2), "x": Trap(sentinel)}
    if way == "bare":
        path.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(SisError, match="nothing in it was run"):
        convert(store(tmp_path), "net")
    assert not sentinel.exists() and [p.name for p in tmp_path.iterdir()] == ["net.pth"]
    if way != "bare":
        torch.load(path, weights_only=False)["x"].close()
        assert sentinel.exists(), "the trap works"


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"nothing to convert - net: fetch https://example\.org/net\.pth"):
        convert(store(tmp_path), "net")
    (tmp_path / "net.pth").write_bytes(b"damaged")
    with pytest.raises(SisError, match="expected 00000000"):
        convert(store(tmp_path, card(sha256_prefix="0" * 8)), "net")
    written(tmp_path / "net.safetensors")
    with pytest.raises(SisError, match="safetensors file already"):
        convert(store(tmp_path, card(file="net.safetensors")), "net")
    written(tmp_path / "net.pth")
    (tmp_path / "net.pth.safetensors").mkdir()
    with pytest.raises(SisError, match="this is a folder"):
        convert(store(tmp_path), "net")


def test_a_disk_that_fills_up_leaves_no_converted_file(tmp_path: Path) -> None:
    written(tmp_path / "net.pth", {"a": torch.zeros(100_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SisError, match=r"no space left to write net\.pth\.safetensors"):
            convert(store(tmp_path), "net")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


def _with_header(path: Path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_file_in_the_place_of_a_conversion_is_refused(tmp_path: Path) -> None:
    """Truncated, empty, a plain safetensors file, foreign or forged metadata."""
    digest = written(tmp_path / "net.pth")
    out = convert(store(tmp_path), "net")
    whole = out.read_bytes()
    metadata = {"source": {"file": "net.pth", "bytes": 1, "sha256": digest}, "digest": "ab" * 32}
    attempts = [whole[: int(share * len(whole))] for share in (0, 0.001, 0.1, 0.5, 0.99)] + [b"", b"\xff" * 100, b"{}"]
    for content in attempts:
        out.write_bytes(content)
        with pytest.raises(SisError, match=r"damaged.*net\.pth\.safetensors.*convert again"):
            store(tmp_path).look("net")
    out.write_bytes(whole + b"\0")
    with pytest.raises(SisError, match="damaged"):
        store(tmp_path).look("net")
    for facts in (None, {}, {"other": "x"}, {"sis": "not JSON"}, {"sis": "[]"}, {"sis": json.dumps(metadata)},
                  {"sis": json.dumps({**metadata, "digest": "short"})}, {"sis": json.dumps({"digest": "ab" * 32})},
                  {"sis": json.dumps({**metadata, "source": None})}):  # fmt: skip
        save_file({"a": torch.zeros(2)}, out, facts)
        with pytest.raises(SisError, match="damaged"):
            store(tmp_path).look("net")
    for header in (b"[]", b"{", b"[" * 50_000, b'{"__metadata__": 3}', b'{"__metadata__": {"sis": "[[[["}}', b"\xff{}"):
        _with_header(out, header)
        with pytest.raises(SisError, match="damaged"):
            store(tmp_path).look("net")


def test_a_converted_file_is_plain_safetensors_for_everybody_else(tmp_path: Path) -> None:
    written(tmp_path / "net.pth")
    assert set(load_file(convert(store(tmp_path), "net"))) == set(tensors())
