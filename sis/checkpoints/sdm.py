# SPDX-License-Identifier: Apache-2.0
"""SDM's released checkpoints (WeilunWang/semantic-diffusion-model): bare state dicts of its U-Net, and ours as such.

Facts from the authors' code at commit 7171f373. Names differ, values do not; their attention is a one-dimensional
convolution where ours is a 1x1 one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sis.config.strict_yaml import validate
from sis.data.weight_names import refuse_differences
from sis.errors import SisError
from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import SDMUNet, UNetConfig

_STAGES = {"encoder": "input_blocks", "middle": "middle_block", "decoder": "output_blocks"}
_WHOLE = {
    "time.0": "time_embed.0",
    "time.2": "time_embed.2",
    "stem": "input_blocks.0.0",
    "norm": "out.0",
    "head": "out.2",
}
_PLAIN = {"norm1.norm": "in_layers.0", "conv1": "in_layers.2", "embed": "emb_layers.1", "norm2.norm": "out_layers.0",
          "conv2": "out_layers.3", "skip": "skip_connection"}  # fmt: skip
_SPADE = {"norm1.shared": "in_norm.mlp_shared.0", "norm1.gamma": "in_norm.mlp_gamma", "norm1.beta": "in_norm.mlp_beta",
          "conv1": "in_layers.1", "embed": "emb_layers.1", "norm2.shared": "out_norm.mlp_shared.0",
          "norm2.gamma": "out_norm.mlp_gamma", "norm2.beta": "out_norm.mlp_beta", "conv2": "out_layers.2",
          "skip": "skip_connection"}  # fmt: skip
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
#: A convolution that every SPADE norm has; its second dimension is the width of the label map.
_LABELS = "in_norm.mlp_shared.0.weight"
_LAST = "0.out_layers.2.weight"
#: What stands before the network's own names in a model of the method.
_INNER = "unet."


#: The method whose network these weights fill.
METHOD = "sdm"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of an SDM U-Net under the authors' names."""
    return "time_embed.0.weight" in state and any(name.endswith(_LABELS) for name in state)


def import_sdm(
    state: Mapping[str, Tensor], network: SDMUNet | None = None, where: Path | None = None
) -> dict[str, Tensor]:
    """The authors' weights under the names of `SDMUNet`, in float32.

    Args:
        state: a whole state dict of theirs.
        network: the network to be filled, which may lie on the meta device; None: the one that the shapes speak of.
        where: what a refusal names.

    Raises SisError where the width of the label map differs, or names or shapes do.
    """
    own = (network or network_of(state)).state_dict()
    needed = export_sdm(own)
    trained, here = label_channels(state), label_channels(needed)
    if trained != here:
        raise SisError(
            f"the checkpoint was trained on {trained} label channels, this dataset has {here}",
            where=where,
            fix="use the dataset that it was trained on, with the same label table and edge map",
        )
    refuse_differences(state, needed, where)
    theirs = upstream_names(own)
    return {name: state[theirs[name]].reshape(value.shape).float() for name, value in own.items()}


def export_sdm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an `SDMUNet` under the authors' names and shapes, in the order of their file."""
    theirs = upstream_names(state)
    lines = ("qkv.weight", "proj_out.weight")
    return {theirs[k]: value.squeeze(-1) if theirs[k].endswith(lines) else value for k, value in state.items()}


def upstream_names(ours: Collection[str]) -> dict[str, str]:
    """The authors' name of each of our names; which layers a block has, the names beside it tell."""
    return {name: _upstream_name(name, ours) for name in ours}


def _upstream_name(name: str, beside: Collection[str]) -> str:
    body, _, kind = name.rpartition(".")
    if body in _WHOLE:
        return f"{_WHOLE[body]}.{kind}"
    found = re.fullmatch(r"(encoder|middle|decoder)\.((?:\d+\.)?)(\d+)\.([a-z].*)", body)
    if not found:
        raise SisError(f"no weight of an SDM network: {name}")
    stage, level, place, layer = found.groups()
    block = f"{stage}.{level}{place}"
    attention, spade = f"{block}.qkv.weight" in beside, f"{block}.norm1.shared.weight" in beside
    table = _ATTENTION if attention else _SPADE if spade else _PLAIN
    if stage == "encoder":  # theirs begins with the stem
        level = f"{int(level[:-1]) + 1}."
    return f"{_STAGES[stage]}.{level}{place}.{table[layer]}.{kind}"


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The network that a whole checkpoint fits; raises SisError for one with missing or other weights."""
    network = network_of(state)
    refuse_differences(state, export_sdm(network.state_dict()))
    config, channels = network.config, image_channels(state)
    shape = {name: getattr(config, name) for name in ("width", "multipliers", "blocks", "attention", "learn_sigma")}
    return {
        "label channels": label_channels(state),
        "image channels": channels,
        "fit": shape,
        "image size": f"both sides divisible by {2 ** (len(config.multipliers) - 1)}",
    }


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The authors' weights under the names of the method's network; raises SisError where they do not fit it."""
    refuse_unlike_sdm(fit, where)
    assert isinstance(network, PatchedUNet)
    return {_INNER + name: value for name, value in import_sdm(state, network.unet, where).items()}


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names; raises SisError for a network that their code does not have."""
    refuse_unlike_sdm(fit, where)
    found = export_sdm({name.removeprefix(_INNER): value for name, value in tensors.items()})
    order = export_sdm(network_of(found).state_dict())
    refuse_differences(found, order, where)
    return {name: found[name] for name in order}


def refuse_unlike_sdm(fit: Mapping[str, Any], where: Path) -> None:
    """Raise SisError for a network (its `fit` parameters) that the authors' code does not have."""
    theirs = {"conditioning": "spade", "patch": 1, "predict": "eps", "groups": 32, "spade_hidden": 128}
    other = [f"{name}: {fit[name]}" for name, value in theirs.items() if fit[name] != value]
    if any(fit["width"] * multiplier % 32 for multiplier in fit["multipliers"]):
        other.append(f"width: {fit['width']} (32 groups do not divide it)")
    if other:
        only = ", ".join(f"{name}: {value}" for name, value in theirs.items())
        raise SisError(f"the authors' code has no network with {', '.join(other)}", where=where, fix=f"only {only}")


def label_channels(state: Mapping[str, Tensor]) -> int:
    """Channels of the label map, edge channel included, that these weights expect."""
    return int(_weight(state, f"middle_block.0.{_LABELS}").shape[1])


def network_of(state: Mapping[str, Tensor]) -> SDMUNet:
    """The network that these weights speak of, on the meta device; raises SisError where they are no SDM network's."""
    with torch.device("meta"):
        return SDMUNet(config_of(state), image_channels(state), label_channels(state))


def config_of(state: Mapping[str, Tensor]) -> UNetConfig:
    """The shape of the network, as far as weights tell: heads and groups of the norms are the published ones."""
    width = int(_weight(state, "time_embed.0.weight").shape[1])
    levels = _count(state, "output_blocks")
    ups = [i for i in range(levels) if _doubles(state, f"output_blocks.{i}")]
    blocks = ups[0] if ups else levels - 1
    last = range(levels - 1, 0, -blocks - 1)  # the last decoder block of every level, finest level first
    shape = {
        "width": width,
        "multipliers": [max(1, _weight(state, f"output_blocks.{i}.{_LAST}").shape[0] // width) for i in last],
        "blocks": blocks,
        "attention": [2**level for level, i in enumerate(last) if f"output_blocks.{i}.1.qkv.weight" in state],
        "spade_hidden": int(_weight(state, f"middle_block.0.{_LABELS}").shape[0]),
        "learn_sigma": _weight(state, "out.2.weight").shape[0] == 2 * image_channels(state),
    }
    return validate(UNetConfig, shape, "the network that the checkpoint's shapes speak of")


def image_channels(state: Mapping[str, Tensor]) -> int:
    """Channels of the noisy images: 3 for pixels."""
    return int(_weight(state, "input_blocks.0.0.weight").shape[1])


def _doubles(state: Mapping[str, Tensor], level: str) -> bool:
    """Whether a decoder level ends in an up-sampling block: it has two residual blocks."""
    return any(f"{level}.{j}.in_layers.1.weight" in state for j in (1, 2))


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many of a numbered kind there are."""
    return len({found[0] for key in state if (found := re.match(rf"{name}\.\d+\.", key))})


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise SisError(f"an SDM checkpoint without {name}")
    if state[name].ndim < 2 or not state[name].numel():
        raise SisError(f"an SDM checkpoint whose {name} is {tuple(state[name].shape)}")
    return state[name]
