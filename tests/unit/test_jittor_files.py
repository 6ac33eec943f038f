# SPDX-License-Identifier: Apache-2.0
"""Jittor's checkpoints: numbers under names are read; anything else is refused in one line, and nothing is run."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_weights import Trap

from sis.data.manifest import file_sha256
from sis.data.weight_files import read_weights
from sis.errors import SisError

CASE = Path(__file__).parents[1] / "golden" / "cases" / "iidm" / "jittor_checkpoint" / "data.npz"

WEIGHTS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big-endian": np.array([1.5, -2.0], dtype=">f4"),
    "half": np.array([0.5], dtype=np.float16),
    "steps": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "kept": np.array([True, False]),
}


def jittor_file(content: object, path: Path) -> Path:
    """Write what `jittor.save` writes of numpy arrays."""
    body = content if isinstance(content, bytes) else pickle.dumps(content, protocol=4)
    path.write_bytes(body + hashlib.sha1(body, usedforsecurity=False).digest() + b"HCAJSLHD")
    return path


def refused(path: Path, words: str) -> None:
    with warnings.catch_warnings(), pytest.raises(SisError, match=words) as caught:
        warnings.simplefilter("error")
        read_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


class Call:
    """Pickled, it asks for a callable with some arguments and then a state."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.given


def test_every_kind_of_array_is_read_with_its_values(tmp_path: Path) -> None:
    path = jittor_file(OrderedDict(WEIGHTS), tmp_path / "w.pkl")
    found = read_weights(path)
    assert list(found.tensors) == list(WEIGHTS) and found.sha256 == file_sha256(path)
    for name, value in WEIGHTS.items():
        assert found.tensors[name].shape == value.shape
        np.testing.assert_array_equal(found.tensors[name].numpy(), value)
    assert found.tensors["turned"].dtype == torch.float64 and found.tensors["conv.weight"].is_contiguous()


def test_the_file_name_does_not_matter_and_a_state_dict_entry_is_taken(tmp_path: Path) -> None:
    path = jittor_file({"state_dict": WEIGHTS, "epoch": 3}, tmp_path / "w.ckpt")
    assert list(read_weights(path).tensors) == list(WEIGHTS)


@pytest.mark.parametrize("cut", [1, 8, 9, 28, 29, 100, 600])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    with np.load(CASE) as data:
        whole = data["file_bytes"].tobytes()
    (tmp_path / "w.pkl").write_bytes(whole)
    assert len(read_weights(tmp_path / "w.pkl").tensors) == 3
    (tmp_path / "w.pkl").write_bytes(whole[:-cut])
    refused(tmp_path / "w.pkl", "damaged file; nothing in it was run")


@pytest.mark.parametrize("place", [0.3, 0.7, 0.95])
def test_a_changed_byte_is_refused(tmp_path: Path, place: float) -> None:
    path = jittor_file(WEIGHTS, tmp_path / "w.pkl")
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    refused(path, "damaged Jittor checkpoint: its digest differs")


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "was run"
    content = {**WEIGHTS, "x": Trap(sentinel)}
    path = jittor_file(content, tmp_path / "w.pkl")
    refused(path, r"nothing in it was run \(it names _?io\.open\)")
    assert not sentinel.exists()
    pickle.loads(path.read_bytes())["x"].close()  # noqa: S301
    assert sentinel.exists(), "the trap works"


@pytest.mark.parametrize("name", ["builtins.eval", "os.system", "numpy.load", "numpy.core.multiarray.fromfile",
                                  "jittor.compile_extern", "numpy.ndarray.tofile"])  # fmt: skip
def test_only_what_arrays_need_may_be_named(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    names = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
    body = b"\x80\x04" + names + b"\x93\x8c\x01x\x85R."  # the name, a text, called with it
    refused(jittor_file(body, tmp_path / "w.pkl"), f"nothing in it was run .it names {name}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"x": np.array([{}], dtype=object)}, "something else than numbers"),
        ({"x": np.array(["text"])}, "something else than numbers"),
        ({"x": np.array([1j])}, "something else than numbers"),
        ({"x": np.zeros(2, dtype=[("a", "f4")])}, "something else than numbers"),
        ({"x": Call(np.ndarray, ((10**12,),))}, "calls a class with 1 arguments"),
        ({"x": Call(np.dtype, ("f4",))}, "holds more than named weights: x"),
        ({"x": np.dtype}, "holds more than named weights: x"),
        ({"x": 3}, "holds more than named weights: x"),
        ([np.zeros(2)], "holds a list, not named weights"),
        ({}, "holds no weights"),
        ({"x": np.array([np.nan])}, "not finite: x"),
    ],
)
def test_anything_but_finite_numbers_under_names_is_refused(tmp_path: Path, content: object, words: str) -> None:
    refused(jittor_file(content, tmp_path / "w.pkl"), words)


@pytest.mark.parametrize(
    "state",
    [
        (1, (3,), np.dtype("f4"), False, b"\0" * 8),  # fewer bytes than the shape says
        (1, (2**62, 4), np.dtype("f4"), False, b""),
        (1, (-2, -1), np.dtype("f4"), False, b"\0" * 8),
        (1, 2, np.dtype("f4"), False, b"\0" * 8),
        (1, (2,), "f4", False, b"\0" * 8),
        (1, (2,), np.dtype("f4"), False, [1.0, 2.0]),
        (1, (2,)),
        {"shape": (2,)},
    ],
)
def test_an_array_that_contradicts_itself_is_refused(tmp_path: Path, state: object) -> None:
    rebuild, arguments = np.zeros(1).__reduce__()[:2]
    refused(jittor_file({"x": Call(rebuild, arguments, state)}, tmp_path / "w.pkl"), "nothing in it was run")


def test_a_pickle_cannot_change_what_stands_in_for_a_name(tmp_path: Path) -> None:
    name = b"\x8c\x05numpy\x8c\x05dtype\x93"
    for state in (b"}\x8c\x04kind\x8c\x05arrays", b"N}\x8c\x04kind\x8c\x05arrays\x86"):
        refused(jittor_file(b"\x80\x04" + name + state + b"b.", tmp_path / "w.pkl"), "nothing in it was run")
