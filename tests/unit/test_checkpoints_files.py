# SPDX-License-Identifier: Apache-2.0
"""Files of weights from others: read and written whole, or refused in one line, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_checkpoint
import torch
from safetensors.torch import save_file
from torch import Tensor

from sis.data import weight_files
from sis.data.manifest import file_sha256
from sis.data.weight_files import read_weights, write_weights
from sis.errors import SisError

theirs = small_checkpoint.theirs


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.sentinel), "w"))


def test_a_state_dict_is_read_and_written_whole(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert list(found.tensors) == list(theirs) and all(torch.equal(found.tensors[k], theirs[k]) for k in theirs)
    assert (found.sha256, found.bytes) == (file_sha256(tmp_path / "a.pt"), (tmp_path / "a.pt").stat().st_size)
    write_weights(theirs, tmp_path / "b" / "a.pt")
    assert (tmp_path / "b" / "a.pt").read_bytes() == (tmp_path / "a.pt").read_bytes(), "the same bytes every time"
    assert type(torch.load(tmp_path / "a.pt", weights_only=True)) is dict


def test_a_view_is_written_without_the_storage_behind_it(tmp_path: Path) -> None:
    write_weights({"a": torch.zeros(1_000_000)[:2]}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000


def test_a_disk_that_fills_up_leaves_no_half_written_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SisError, match=r"could not be written|full|large"):
            write_weights({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_the_formats_of_old_torch_and_of_safetensors_are_read_too(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(theirs, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({k: v.contiguous() for k, v in theirs.items()}, tmp_path / "new.safetensors")
    for name in ("old.pt", "new.safetensors"):
        found = read_weights(tmp_path / name).tensors
        assert all(torch.equal(found[k], theirs[k]) for k in theirs)


class Shell:
    """Unpickled, it asks for the system's shell."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_refusal_names_the_code_that_a_checkpoint_asks_for(tmp_path: Path) -> None:
    torch.save({"x": Shell()}, tmp_path / "a.pt")
    with pytest.raises(SisError, match=rf"GLOBAL {os.name}\.system"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("way", ["zip", "old", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, way: str) -> None:
    sentinel, path = tmp_path / "was run", tmp_path / "trap.pt"
    content = {"time_embed.0.weight": torch.zeros(2, 2), "x": Trap(sentinel)}
    if way == "bare":
        path.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(SisError, match="nothing in it was run") as caught:
        read_weights(path)
    assert not sentinel.exists() and "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)
    if way != "bare":
        torch.load(path, weights_only=False)["x"].close()
        assert sentinel.exists(), "the trap works"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_refused_in_one_line(
    theirs: dict[str, Tensor], tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        write_weights(theirs, path)
    else:
        save_file({k: v.contiguous() for k, v in theirs.items()}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SisError, match="damaged") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"\x80", b"PK\x03\x04", b"hello world", b"\x00" * 1000, b"\x80\x02]q\x00."])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(SisError, match=r"damaged|holds") as caught:
        read_weights(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not named weights"),
        (torch.zeros(1), "holds a Tensor, not named weights"),
        ({}, "holds no weights"),
        (
            {"model": {"a": torch.zeros(1)}, "step": 3},
            "holds more than named weights: model, step .* - save the state dict",
        ),
        ({1: torch.zeros(1)}, "more than named weights: 1"),
        ({"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(1)}, "weights are not finite: a "),
    ],
)
def test_anything_but_finite_weights_under_names_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SisError, match=message):
        read_weights(tmp_path / "x.pt")


def test_of_a_training_checkpoint_the_state_dict_alone_is_taken(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(1)}
    rest = {"meta": {"CLASSES": ["sky"], "epoch": 3}, "optimizer": {"state": {0: {"step": torch.zeros(1)}}}}
    torch.save({"state_dict": weights, **rest}, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt")
    assert list(found.tensors) == ["a", "b"] and found.sha256 == file_sha256(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema_state_dict": {"a": torch.zeros(1)}}, "holds weights in several places: state_dict, ema_state_dict"),
        ({"a": torch.zeros(1)}, "holds weights in several places: state_dict, a"),
        ({"state_dict": {"a": torch.zeros(1), "step": 3}}, "holds more than named weights: step"),
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": [torch.zeros(1)]}, "holds more than named weights: state_dict"),
    ],
)
def test_a_checkpoint_that_does_not_say_which_weights_is_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {}, **content}, tmp_path / "x.pt")
    with pytest.raises(SisError, match=message):
        read_weights(tmp_path / "x.pt")


def test_code_beside_the_state_dict_is_refused_and_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "was run"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"x": Trap(sentinel)}}, tmp_path / "x.pt")
    with pytest.raises(SisError, match="nothing in it was run"):
        read_weights(tmp_path / "x.pt")
    assert not sentinel.exists()


def test_a_small_file_that_claims_to_hold_huge_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "x.pt")
    with pytest.raises(SisError, match="weights larger than their file: a "):
        read_weights(tmp_path / "x.pt")


def test_a_file_that_is_not_there_and_a_torch_that_is_too_old_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SisError, match="no such file"):
        read_weights(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    monkeypatch.setattr(weight_files.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(SisError, match=r"torch 2\.9\.1\+cpu does not read foreign files safely - install torch 2\.10"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["sparse", "nested", "float8"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_ordinary_are_refused(tmp_path: Path, kind: str) -> None:
    odd = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    }
    torch.save({"good": torch.ones(2), "odd": odd[kind]()}, tmp_path / "odd.pt")
    with pytest.raises(SisError, match=r"floating-point tensors: odd|not a state dict"):
        read_weights(tmp_path / "odd.pt")
