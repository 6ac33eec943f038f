# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SDM's authors: every weight arrives under its name, or the difference is told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_checkpoint
import torch
from small_checkpoint import small
from torch import Tensor

from sis.checkpoints.sdm import config_of, export_sdm, import_sdm, network_of
from sis.errors import SisError
from sis.nets.sdm_unet import SDMUNet, UNetConfig

CASES = Path(__file__).parents[1] / "golden" / "cases" / "sdm"
FULL = {"keys_full_ade20k": 151, "keys_full_celeba": 20}
theirs = small_checkpoint.theirs


# Names


@pytest.mark.parametrize("case", FULL)
def test_every_key_and_shape_of_a_full_size_checkpoint_has_its_place_and_finds_back(case: str) -> None:
    keys = json.loads((CASES / case / "case.json").read_text())["keys"]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in keys.items()}
        network = SDMUNet(UNetConfig(), 3, FULL[case])
    ours = import_sdm(state, network)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert [(k, list(v.shape)) for k, v in export_sdm(ours).items()] == list(keys.items()), "and in their order"
    assert config_of(state) == UNetConfig(), "the shapes speak of the published network"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learn_sigma": False},
        {"multipliers": [1], "attention": []},
        {"multipliers": [2, 1, 2], "blocks": 2, "attention": [1, 4]},
        {"blocks": 3, "attention": [], "spade_hidden": 8},
    ],
)
def test_weights_survive_the_way_out_and_back_bit_for_bit(changes: dict[str, Any]) -> None:
    network = small(**changes)
    exported = export_sdm(network.state_dict())
    assert len(exported) == len(network.state_dict())
    assert config_of(exported) == network.config
    back = import_sdm(exported)
    assert list(back) == list(network.state_dict())
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in network.state_dict().items())


def test_the_attention_of_the_authors_is_one_dimensional(theirs: dict[str, Tensor]) -> None:
    lines = [k for k, v in theirs.items() if k.endswith(("qkv.weight", "proj_out.weight")) and v.ndim == 3]
    assert len(lines) == 8 and theirs["middle_block.1.qkv.weight"].shape == (192, 64, 1)


def test_half_precision_weights_are_widened_without_loss(theirs: dict[str, Tensor]) -> None:
    half = {k: v.half() for k, v in theirs.items()}
    ours = import_sdm(half)
    assert {v.dtype for v in ours.values()} == {torch.float32}
    assert all(torch.equal(v, half[k]) for k, v in export_sdm(ours).items())


def test_a_name_that_no_network_has_is_not_exported() -> None:
    with pytest.raises(SisError, match=r"no weight of an SDM network: unet\.stem\.weight"):
        export_sdm({"unet.stem.weight": torch.zeros(1)})


def test_a_model_on_the_meta_device_needs_no_memory_and_no_weights() -> None:
    with torch.device("meta"):
        state = {k: torch.empty(v.shape) for k, v in export_sdm(SDMUNet(UNetConfig(), 3, 36).state_dict()).items()}
    network = network_of(state)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(654.0e6, rel=1e-4)
    assert all(p.is_meta for p in network.parameters())


# What does not fit


def test_the_label_width_is_compared_before_anything_else(theirs: dict[str, Tensor]) -> None:
    del theirs["out.2.bias"], theirs["input_blocks.0.0.bias"]
    words = "the checkpoint was trained on 11 label channels, this dataset has 36"
    with pytest.raises(SisError, match=words) as caught:
        import_sdm(theirs, small(36), Path("model.pt"))
    assert "missing" not in str(caught.value) and "[model.pt]" in str(caught.value)


def test_differences_are_listed_by_kind_with_five_names_and_a_count(theirs: dict[str, Tensor]) -> None:
    state = dict(theirs)
    gone = [k for k in state if k.startswith("input_blocks.1.")]
    for key in gone:
        del state[key]
    state |= {"module.x": torch.zeros(1), "out.2.bias": torch.zeros(7)}
    with pytest.raises(SisError) as caught:
        import_sdm(state, small())
    message = str(caught.value)
    assert "\n" not in message
    assert f"{len(gone)} missing: {', '.join(gone[:5])} and {len(gone) - 5} more" in message
    assert "1 unexpected: module.x" in message
    assert "1 of another shape: out.2.bias is (7,) and should be (6,)" in message


@pytest.mark.parametrize("changes", [{"width": 64}, {"blocks": 2}, {"multipliers": [1, 2, 2]}, {"learn_sigma": False}])
def test_a_checkpoint_of_another_network_is_refused(theirs: dict[str, Tensor], changes: dict[str, Any]) -> None:
    with pytest.raises(SisError, match=r"does not fit the network; \d+ "):
        import_sdm(theirs, small(**changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embed.0.weight", torch.zeros(())),
        ("time_embed.0.weight", torch.zeros(4, 0)),
        ("out.2.weight", torch.zeros(3)),
        ("middle_block.0.in_norm.mlp_shared.0.weight", None),
        ("output_blocks.1.0.out_layers.2.weight", None),
        ("output_blocks.1.0.out_layers.2.weight", torch.zeros(1, 1, 3, 3)),
        ("output_blocks.99999999999.0.x", torch.zeros(1)),
    ],
)
def test_shapes_that_speak_of_no_network_are_refused_in_one_line(
    theirs: dict[str, Tensor], key: str, value: Tensor | None
) -> None:
    state = {k: v for k, v in theirs.items() if k != key} | ({} if value is None else {key: value})
    with pytest.raises(SisError) as caught:
        import_sdm(state)
    assert "\n" not in str(caught.value)
