# SPDX-License-Identifier: Apache-2.0
"""The runners take every parameter from the case: another value of any of them is another answer, or is understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runners import Near, compare, run_case
from runners.sdm_network import chain_ddpm, config_of, embedding, network
from runners.sdm_training import train_steps

from sis.nets.sdm_unet import Attention

SDM = Path(__file__).parent / "cases" / "sdm"


def loaded(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(SDM / name / "data.npz") as arrays:
        return json.loads((SDM / name / "case.json").read_text()), dict(arrays)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ddpm6_lowt_s1.5", "s", 1.6),
        ("ddpm6_lowt_s1.5", "clip_denoised", False),
        ("ddpm6_lowt_s1.5", "timestep_respacing", "5,1,0,0"),
        ("ddpm6_lowt_s1.5", "noise_schedule", "cosine"),
        ("ddpm6_lowt_s1.5", "diffusion_steps", 900),
        ("ddpm6_lowt_s1.5", "kept_steps", [0, 1, 2, 3, 5, 4]),
        ("ddpm5_fixedlarge", "sigma_small", True),
        ("ddim10_eta0.7", "eta", 0.6),
        ("condition_input", "drop_rate", 0.95),
        ("train_steps", "lr", 2e-4),
        ("train_steps", "ema_rate", 0.5),
        ("train_steps", "weight_decay", 0.5),
        ("train_steps", "noise_schedule", "cosine"),
        ("timestep_embedding", "max_period", 1000),
    ],
)
def test_another_value_of_a_parameter_is_another_answer(tmp_path: Path, name: str, key: str, value: object) -> None:
    case, _ = loaded(name)
    case["config"][key] = value
    (tmp_path / "case.json").write_text(json.dumps(case))
    (tmp_path / "data.npz").symlink_to(SDM / name / "data.npz")
    with pytest.raises(AssertionError, match="values differ"):
        run_case(tmp_path)


def flags(**changes: object) -> dict[str, Any]:
    return loaded("unet_full_edge")[0]["config"] | changes


def test_an_empty_list_of_multipliers_is_the_authors_for_the_image_size() -> None:
    assert config_of(flags(channel_mult="", image_size=64)).multipliers == [1, 2, 3, 4]


def test_a_number_of_heads_stands_in_for_their_width() -> None:
    case, _ = loaded("unet_full_edge")
    net = network(flags(num_head_channels=-1, num_heads=4), case["keys"])
    assert {module.heads for module in net.modules() if isinstance(module, Attention)} == {4}


def test_flags_that_change_the_network_unseen_are_refused() -> None:
    with pytest.raises(AssertionError, match="no released model"):
        config_of(flags(use_new_attention_order=True))


def test_embeddings_have_the_period_of_the_case() -> None:
    found = embedding({"config": {"dims": [2], "max_period": 3}}, {"t": np.array([1.0], np.float32)})["emb2"]
    assert isinstance(found, Near)
    np.testing.assert_allclose(found.array, [[np.cos(1), np.sin(1)]], rtol=1e-6)


def test_chains_without_clipping_are_judged_by_the_size_of_their_values() -> None:
    case, data = loaded("ddpm5_noguide")
    case["config"]["clip_denoised"] = False
    found = chain_ddpm(case, data)["final"]
    assert isinstance(found, Near)
    largest = float(np.abs(found.array).max())
    assert largest > 10  # of a network with drawn weights
    compare({"final": found}, {"final": found.array * (1 + 1e-6)})
    with pytest.raises(AssertionError, match="values differ"):
        compare({"final": found}, {"final": found.array * 1.1})


def test_a_training_on_a_respaced_chain_tells_the_network_the_full_chains_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, data = loaded("train_steps")
    case["config"]["timestep_respacing"] = "50"
    data["t"] = np.minimum(data["t"], 49)
    seen: list[torch.Tensor] = []
    forward = torch.nn.Module.__call__

    def watched(module: torch.nn.Module, *inputs: Any) -> Any:
        if type(module).__name__ == "SDMUNet":
            seen.append(inputs[1])
        return forward(module, *inputs)

    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    train_steps(case, data)
    steps = np.round(np.linspace(0, 999, 50)).astype(int)
    assert [t.tolist() for t in seen] == steps[data["t"]].tolist()
