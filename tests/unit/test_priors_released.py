# SPDX-License-Identifier: Apache-2.0
"""Pickled priors of the released code: what they hold is read, and nothing in them is executed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from sis.errors import SisError
from sis.priors.params import Policy
from sis.priors.pickled import read_pickled
from sis.priors.released import released_prior

RNG = np.random.default_rng(0)


def saved(path: Path, content: Any) -> Path:
    np.save(path, content, allow_pickle=True)
    return path


def pickled(path: Path, payload: bytes) -> Path:
    """A file as numpy.save writes it around any pickle."""
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(payload)
    return path


def released(folder: Path) -> tuple[dict[str, Any], tuple[Path, Path, Path]]:
    """Three files as released: class 9 was drawn once, 255 is the unlabelled one."""

    def numbers(*shape: int) -> np.ndarray:
        return RNG.normal(size=shape).astype(np.float32)

    joint = {name: np.zeros((256, 4, 2, 3), np.float32) for name in ("mean", "std")}
    count = np.zeros((256, 1, 2, 3), np.int64)
    joint["mean"][:3], joint["std"][:3], count[:3, :, 0] = numbers(3, 4, 2, 3), abs(numbers(3, 4, 2, 3)), 5
    content = {
        "categorical": {k: {"mean": numbers(4), "std": abs(numbers(4))} for k in (0, 1, 255)},
        "spatial": {"mean": numbers(4, 2, 3), "std": abs(numbers(4, 2, 3))},
        "joint": {**joint, "count": count},
    }
    content["categorical"][9] = {"mean": numbers(4), "std": np.full(4, np.nan, np.float32)}
    paths = tuple(saved(folder / f"{name}.npy", value) for name, value in content.items())
    return content, (paths[0], paths[1], paths[2])


def test_what_numpy_saved_is_read(tmp_path: Path) -> None:
    content = {
        1: {"mean": RNG.normal(size=(2, 3)), "std": np.arange(4, dtype=">i2")},
        np.int64(2): {"f": np.asfortranarray(RNG.normal(size=(2, 3)).astype(np.float32)), "n": np.float64(1.5)},
        "text": 3.5, "none": None, "flag": np.array([True, False]),
    }  # fmt: skip
    found = read_pickled(saved(tmp_path / "a.npy", content))
    assert list(found) == [1, 2, "text", "none", "flag"] and found["text"] == 3.5 and found["none"] is None
    for one, two in ((found[1], content[1]), (found[2], content[np.int64(2)])):
        for name in two:
            np.testing.assert_array_equal(one[name], two[name])
            assert np.asarray(one[name]).dtype.kind == np.asarray(two[name]).dtype.kind
    assert found["flag"].tolist() == [True, False]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_of_older_numpy_is_read(tmp_path: Path, protocol: int) -> None:
    content = {3: {"mean": RNG.normal(size=(4,)).astype(np.float32)}}
    payload = pickle.dumps(np.array(content, dtype=object), protocol=protocol)
    for spelling in (payload, payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")):
        if protocol == 4 and spelling != payload:
            continue  # there names carry their length
        found = read_pickled(pickled(tmp_path / "a.npy", spelling))
        np.testing.assert_array_equal(found[3]["mean"], content[3]["mean"])


class _Bad:
    """Runs a call when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def bad_contents(trace: Path) -> dict[str, Any]:
    import os
    import subprocess

    return {
        "a command": _Bad(os.system, f"touch {trace}"),
        "a process": _Bad(subprocess.check_call, ["touch", str(trace)]),
        "code": _Bad(exec, f"open({str(trace)!r}, 'w')"),
        "an open file": _Bad(open, str(trace), "w"),
        "numpy's own files": _Bad(np.savetxt, str(trace), [1.0]),
        "a memory map": _Bad(np.memmap, str(trace), "uint8", "w+", 0, (4,)),
        "torch": torch.zeros(3),
        "a class": Path("x"),
    }


@pytest.mark.parametrize("name", bad_contents(Path("x")))
@pytest.mark.parametrize("place", ["whole", "value", "key", "inside an array"])
def test_nothing_in_a_file_is_run(tmp_path: Path, name: str, place: str) -> None:
    trace = tmp_path / "trace"
    bad = bad_contents(trace)[name]
    content = {"whole": bad, "value": {0: {"mean": bad}}, "key": {(bad,): 1},
               "inside an array": {0: np.array([bad], dtype=object)}}[place]  # fmt: skip
    outer = np.empty((), dtype=object)
    outer[()] = content
    path = pickled(tmp_path / "bad.npy", pickle.dumps(outer, protocol=4))
    with pytest.raises(SisError, match="nothing in it was run") as refused:
        read_pickled(path)
    assert not trace.exists() and "\n" not in str(refused.value) and "bad.npy" in str(refused.value)


def state_of(name: bytes, state: bytes) -> bytes:
    """A pickle that gives a global a new state: names must stay what they are."""
    return b"\x80\x02c" + name + b"\n" + state + b"b."


@pytest.mark.parametrize("name", [b"numpy\nndarray", b"numpy\ndtype", b"_codecs\nencode"])
@pytest.mark.parametrize("state", [b"}X\x05\x00\x00\x00_makeK\x01s", b"N}X\x05\x00\x00\x00_makeK\x01s\x86"])
def test_a_file_cannot_change_what_names_mean(tmp_path: Path, name: bytes, state: bytes) -> None:
    with pytest.raises(SisError, match="it changes a name"):
        read_pickled(pickled(tmp_path / "a.npy", state_of(name, state)))
    content = {1: np.arange(3.0)}
    assert read_pickled(saved(tmp_path / "good.npy", content))[1].tolist() == [0, 1, 2]


def test_entries_that_are_repeated_do_not_swell(tmp_path: Path) -> None:
    laughs: Any = dict.fromkeys(range(50), 0)
    for _ in range(8):
        laughs = dict.fromkeys(range(50), laughs)
    with pytest.raises(SisError, match="too many entries"):
        read_pickled(saved(tmp_path / "a.npy", laughs))
    big = np.zeros(10_000)
    with pytest.raises(SisError, match="more than its size"):
        read_pickled(saved(tmp_path / "b.npy", dict.fromkeys(range(50), big)))


def test_other_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npy", {1: {"mean": np.zeros(50)}}).read_bytes()
    damaged = tmp_path / "a.npy"
    for cut in range(0, len(whole), 7):
        damaged.write_bytes(whole[:cut])
        with pytest.raises(SisError, match="damaged"):
            read_pickled(damaged)
    with pytest.raises(SisError, match="it is a plain array"):
        read_pickled(saved(damaged, np.zeros(3)))
    with pytest.raises(SisError, match="no such file"):
        read_pickled(tmp_path / "absent.npy")
    buffer = io.BytesIO()
    torch.save({"mean": torch.zeros(3)}, buffer)
    damaged.write_bytes(buffer.getvalue())
    with pytest.raises(SisError, match="not a dictionary that numpy saved"):
        read_pickled(damaged)


def test_the_released_files_become_a_prior(tmp_path: Path) -> None:
    content, paths = released(tmp_path)
    prior = released_prior(*paths)
    assert prior.classes == 256 and prior.shape == (4, 2, 3)
    labels = torch.tensor([[[0, 1, 2], [0, 77, 9]]])
    mean, std = prior.maps(labels, "joint", Policy.released("class"))
    joint, of_class = content["joint"], content["categorical"]
    np.testing.assert_array_equal(mean[0, :, 0, 1], joint["mean"][1, :, 0, 1])
    np.testing.assert_allclose(std[0, :, 0, 2], joint["std"][2, :, 0, 2], rtol=1e-6)
    np.testing.assert_array_equal(mean[0, :, 1, 0], of_class[0]["mean"])
    np.testing.assert_allclose(std[0, :, 1, 0], of_class[0]["std"], rtol=1e-6)
    np.testing.assert_array_equal(mean[0, :, 1, 1], of_class[255]["mean"])
    np.testing.assert_array_equal(mean[0, :, 1, 2], of_class[255]["mean"])  # drawn once: no deviation
    spatial = prior.maps(labels, "joint", Policy.released("spatial"))[0]
    np.testing.assert_array_equal(spatial[0, :, 1], content["spatial"]["mean"][:, 1])


def test_released_files_in_the_wrong_place_are_refused(tmp_path: Path) -> None:
    _, (categorical, spatial, joint) = released(tmp_path)
    for wrong in ((spatial, spatial, joint), (categorical, joint, joint), (categorical, spatial, spatial)):
        with pytest.raises(SisError, match=r"\.npy\]"):
            released_prior(*wrong)
    group = {"mean": np.zeros(4), "std": np.zeros(4)}
    for content, says in (({300: group}, "outside 0..255: 300"), ({}, "not {id"),
                          ({0: group, 1: {"mean": np.zeros(3), "std": np.zeros(3)}}, "different lengths")):  # fmt: skip
        saved(categorical, content)
        with pytest.raises(SisError, match=says):
            released_prior(categorical, spatial, joint)
