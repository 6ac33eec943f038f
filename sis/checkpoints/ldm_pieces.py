# SPDX-License-Identifier: Apache-2.0
"""The networks in a file of the Stable Diffusion family: U-Net, ControlNet and autoencoder, under either's names.

One file may hold all three (a ControlLDM checkpoint: `model.diffusion_model.`, `control_model.`,
`first_stage_model.`), one of them, or one without a prefix; under the names of its authors or of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from sis.checkpoints import ldm_names
from sis.data.weight_names import refuse_differences
from sis.errors import SisError, first_of

Kind = Literal["unet", "controlnet", "vae"]
#: What people call them.
TITLES: dict[Kind, str] = {"unet": "U-Net", "controlnet": "ControlNet", "vae": "autoencoder"}


@dataclass(frozen=True)
class Naming:
    """How a kind of network is found: what stands before its names, and names that no other kind has together."""

    authors: bool
    prefix: str
    marks: tuple[str, ...]


_NAMINGS: dict[Kind, tuple[Naming, Naming]] = {
    "unet": (
        Naming(True, "model.diffusion_model.", ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")),
        Naming(False, "unet.", ("time_embedding.linear_1.weight", "conv_in.weight", "conv_out.weight")),
    ),
    "controlnet": (
        Naming(True, "control_model.", ("time_embed.0.weight", "input_hint_block.0.weight")),
        Naming(False, "controlnet.", ("time_embedding.linear_1.weight", "controlnet_cond_embedding.conv_in.weight")),
    ),
    "vae": (
        Naming(True, "first_stage_model.", ("encoder.down.0.block.0.norm1.weight", "quant_conv.weight")),
        Naming(False, "vae.", ("encoder.down_blocks.0.resnets.0.norm1.weight", "quant_conv.weight")),
    ),
}
#: A U-Net of this family attends to text; a quantised autoencoder is of another one.
_NEEDED = {"unet": re.compile(r"\.attn2\.to_k\.weight$")}
_EXCLUDED = {"vae": re.compile(r"^quantize\.")}

#: What such files hold besides, which no network of ours has: text encoder, averages that training kept, its losses.
_BESIDE = ("cond_stage_model.", "model_ema.", "text_encoder.", "safety_checker.", "first_stage_model.", "loss.")
#: Noise schedules, which follow from numbers in the configuration.
_SCHEDULE = {"betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
             "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
             "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
             "lvlb_weights", "logvar", "scale_factor"}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One network's weights. authors: whether they have the authors' names (else diffusers'), prefix taken away."""

    kind: Kind
    authors: bool
    prefix: str
    tensors: dict[str, Tensor]


def pieces(state: Mapping[str, Tensor]) -> dict[Kind, Piece]:
    """The networks of a file, by kind; empty for a file of another family."""
    every = [_piece(state, kind, naming) for kind, namings in _NAMINGS.items() for naming in namings]
    return {piece.kind: piece for piece in every if piece}


def _piece(state: Mapping[str, Tensor], kind: Kind, naming: Naming) -> Piece | None:
    for prefix in (naming.prefix, ""):
        if not all(prefix + mark in state for mark in naming.marks):
            continue
        beside = () if prefix else _BESIDE
        tensors = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and not name.startswith((*beside, prefix + "loss."))
        }
        needed, excluded = _NEEDED.get(kind), _EXCLUDED.get(kind)
        if needed and not any(needed.search(name) for name in tensors):
            continue
        if excluded and any(excluded.search(name) for name in tensors):
            continue
        if kind == "vae" and not naming.authors:
            tensors = ldm_names.modern_vae(tensors)
        return Piece(kind, naming.authors, prefix, tensors)
    return None


def refuse_strangers(state: Mapping[str, Tensor], found: Mapping[Kind, Piece], where: Path | None = None) -> None:
    """Raise SisError for weights that belong to no network of the file and are not known to lie beside them."""
    prefixes = tuple(piece.prefix for piece in found.values())
    strange = [name for name in state if not name.startswith((*prefixes, *_BESIDE)) and name not in _SCHEDULE]
    if strange:
        raise SisError(f"{len(strange)} unexpected weights: {first_of(strange)}", where=where)


def filled(piece: Piece, needed: Mapping[str, Tensor], where: Path | None) -> dict[str, Tensor]:
    """A piece's weights in float32 under diffusers' names.

    needed: the network's own state dict, which may lie on the meta device. Raises SisError where names or shapes
    differ, naming them as the file does.
    """
    theirs, shaped = _translated(piece.kind, needed) if piece.authors else ({name: name for name in needed}, needed)
    wanted = {piece.prefix + name: value for name, value in shaped.items()}
    refuse_differences({piece.prefix + name: value for name, value in piece.tensors.items()}, wanted, where)
    return {name: piece.tensors[theirs[name]].reshape(value.shape).float() for name, value in needed.items()}


def written(kind: Kind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under the authors' names and shapes, with the prefix that a whole checkpoint has."""
    return {_NAMINGS[kind][0].prefix + name: value for name, value in _translated(kind, tensors)[1].items()}


def _translated(kind: Kind, own: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The authors' name of each of diffusers' names, and the weights under those names with their shapes."""
    if kind == "vae":
        names = ldm_names.vae_names(own)
        return names, {names[name]: ldm_names.vae_shaped(names[name], value) for name, value in own.items()}
    names = ldm_names.unet_names(own)
    return names, {names[name]: value for name, value in own.items()}


def part_of(network: nn.Module, kind: Kind) -> tuple[str, nn.Module]:
    """The diffusers module of a kind inside a method's network, and what stands before its names there."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    classes = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel, "vae": AutoencoderKL}
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, classes[kind])]
    if len(found) != 1:
        raise SisError(f"the method's network has {len(found)} modules that could be the {TITLES[kind]}")
    name, module = found[0]
    return f"{name}." if name else "", module


def named_part(tensors: Mapping[str, Tensor], kind: Kind, where: Path | None) -> tuple[str, dict[str, Tensor]]:
    """The weights of a kind in a model artefact under diffusers' names, and what stands before them there."""
    marks = _NAMINGS[kind][1].marks
    ends = [name.removesuffix(marks[0]) for name in tensors if name.endswith(marks[0])]
    found = [prefix for prefix in ends if all(prefix + mark in tensors for mark in marks)]
    if len(found) != 1:
        raise SisError(f"the model has {len(found)} networks that could be the {TITLES[kind]}", where=where)
    return found[0], {k.removeprefix(found[0]): v for k, v in tensors.items() if k.startswith(found[0])}
