# SPDX-License-Identifier: Apache-2.0
"""The mean of checkpoints: float64, of files of any kind, refused where they are of different networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_jittor_files import jittor_file
from torch import Tensor

from sis.data.tensors import save_tensors
from sis.data.weight_files import write_weights
from sis.errors import SisError
from sis.training.average import average_weights


def weights(seed: int) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {"out.weight": torch.randn(2, 3, generator=drawn), "in.bias": 1e-3 * torch.randn(4, generator=drawn)}


def test_the_mean_is_taken_in_double_precision_over_files_of_all_kinds(tmp_path: Path) -> None:
    states = [weights(seed) for seed in range(4)]
    files = [tmp_path / name for name in ("a.pt", "b.safetensors", "c.pkl", "d.safetensors")]
    write_weights(states[0], files[0])
    save_file(states[1], files[1])
    jittor_file({name: value.numpy() for name, value in states[2].items()}, files[2])
    save_tensors(states[3], files[3], "model", {}, {})
    mean = average_weights(files)
    assert list(mean) == list(states[0])
    for name, value in mean.items():
        expected = np.mean([state[name].numpy().astype(np.float64) for state in states], axis=0)
        assert value.dtype == torch.float64
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-15)
        assert (value != value.float()).any(), "more than float32 can hold"


def test_one_file_is_its_own_mean_and_none_has_no_mean(tmp_path: Path) -> None:
    write_weights(weights(0), tmp_path / "a.pt")
    assert torch.equal(average_weights([tmp_path / "a.pt"])["in.bias"], weights(0)["in.bias"].double())
    with pytest.raises(SisError, match="no files"):
        average_weights([])


def test_files_of_different_networks_are_refused(tmp_path: Path) -> None:
    write_weights(weights(0), tmp_path / "a.pt")
    write_weights({"out.weight": torch.zeros(3, 2), "more": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(SisError, match=r"1 missing: in\.bias; 1 unexpected: more; 1 of another shape: out\.weight"):
        average_weights([tmp_path / "a.pt", tmp_path / "b.pt"])


def test_an_altered_model_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(weights(0), path, "model", {}, {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SisError):
        average_weights([path])
