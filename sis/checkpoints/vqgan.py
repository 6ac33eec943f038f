# SPDX-License-Identifier: Apache-2.0
"""VQ autoencoders of latent diffusion (CompVis/latent-diffusion, `vq-f4`) and of IIDM, which has the same names.

Facts from CompVis' code and from ader47/jittor-jieke-semantic_images_synthesis at commit b9ad35c. Values are the same
under other names; their attention has 1x1 convolutions where diffusers has linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sis.checkpoints.ldm_names import vae_names, vae_shaped
from sis.config.strict_yaml import validate
from sis.data.weight_names import refuse_differences
from sis.errors import SisError
from sis.nets.latent.vq import VQConfig, VQFirstStage

#: The method whose network these weights fill.
METHOD = "autoencoder_vq"

#: What stands before the network's own names in a model of the method.
_INNER = "autoencoder."
#: Before the names of an autoencoder inside the checkpoint of a latent diffusion model.
_STAGE = "first_stage_model."
#: Weights of the training's losses, which a whole training checkpoint holds too.
_LOSSES = "loss."
_CODEBOOK = "quantize.embedding.weight"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of such an autoencoder under the authors' names."""
    return {_CODEBOOK, "encoder.conv_in.weight"} <= _autoencoder(state).keys()


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The network that a whole checkpoint fits; raises SisError for one with missing or other weights."""
    found = _autoencoder(state)
    config = config_of(found)
    with torch.device("meta"):
        network = VQFirstStage(config)
    refuse_differences(found, export_vq(network.autoencoder.state_dict()))
    shape = ("block_out_channels", "layers_per_block", "attention", "latent_channels", "hidden_channels", "codes")
    facts: dict[str, object] = {"fit": {name: getattr(config, name) for name in shape}}
    return facts | {"image size": f"both sides divisible by {network.factor}"}


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The authors' weights under the names of the method's network; raises SisError where they do not fit it."""
    _refuse_unlike_theirs(fit, where)
    assert isinstance(network, VQFirstStage)
    found = import_vq(_autoencoder(state), network.autoencoder.state_dict(), where)
    return {_INNER + name: value for name, value in found.items()}


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names; raises SisError for a network that their code does not have."""
    _refuse_unlike_theirs(fit, where)
    return export_vq({name.removeprefix(_INNER): value for name, value in tensors.items()})


def import_vq(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: Path | None = None) -> dict[str, Tensor]:
    """The authors' weights under the names of diffusers' VQModel, in float32.

    Args:
        state: a state dict of theirs.
        own: that of the network to be filled, which may lie on the meta device.
        where: what a refusal names.

    Raises SisError where names or shapes differ.
    """
    refuse_differences(state, export_vq(own), where)
    theirs = vae_names(own)
    return {name: state[theirs[name]].reshape(value.shape).float() for name, value in own.items()}


def export_vq(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of diffusers' VQModel under the authors' names and in their shapes."""
    theirs = vae_names(own)
    return {theirs[name]: vae_shaped(theirs[name], value) for name, value in own.items()}


def config_of(state: Mapping[str, Tensor]) -> VQConfig:
    """The shape of the network, as far as weights tell: the groups of the norms are the published ones."""
    levels = _count(state, r"encoder\.down\.(\d+)\.block")
    channels = [_weight(state, f"encoder.down.{i}.block.0.conv1.weight").shape[0] for i in range(levels)]
    attends = [any(key.startswith(f"encoder.down.{i}.attn.") for key in state) for i in range(levels)]
    shape = {
        "block_out_channels": channels,
        "layers_per_block": _count(state, r"encoder\.down\.0\.block\.(\d+)"),
        "attention": [2**i for i, attended in enumerate(attends) if attended],
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "latent_channels": _weight(state, _CODEBOOK).shape[1],
        "hidden_channels": _weight(state, "encoder.conv_out.weight").shape[0],
        "codes": _weight(state, _CODEBOOK).shape[0],
    }
    return validate(VQConfig, shape, "the network that the checkpoint's shapes speak of")


def _autoencoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's own weights, by the names that they have in a file of theirs."""
    inside = {name.removeprefix(_STAGE): value for name, value in state.items() if name.startswith(_STAGE)}
    return {name: value for name, value in (inside or state).items() if not name.startswith(_LOSSES)}


def _refuse_unlike_theirs(fit: Mapping[str, Any], where: Path) -> None:
    """Raise SisError for a network (its `fit` parameters) that the authors' code does not have."""
    theirs = {"patch": 1, "norm_groups": 32, "middle_attention": True}
    other = [f"{name}: {fit[name]}" for name, value in theirs.items() if fit[name] != value]
    other += ["scale: auto"] if fit["scale"] == "auto" else []
    if other:
        fix = "only " + ", ".join(f"{name}: {value}" for name, value in theirs.items()) + " and a number as scale"
        raise SisError(f"the authors' code has no autoencoder with {', '.join(other)}", where=where, fix=fix)


def _count(names: Collection[str], pattern: str) -> int:
    """How many different numbers a pattern finds in names."""
    return len({found[1] for key in names if (found := re.match(pattern, key))})


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise SisError(f"a VQ autoencoder without {name}")
    if state[name].ndim < 2 or not state[name].numel():
        raise SisError(f"a VQ autoencoder whose {name} is {tuple(state[name].shape)}")
    return state[name]
