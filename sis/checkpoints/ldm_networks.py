# SPDX-License-Identifier: Apache-2.0
"""Fills networks of ours with weights of the Stable Diffusion family, and writes them back under the authors' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sis.checkpoints import diffusers_folder
from sis.checkpoints.ldm_pieces import (
    TITLES,
    Kind,
    Piece,
    filled,
    named_part,
    part_of,
    pieces,
    refuse_strangers,
    written,
)
from sis.checkpoints.ldm_shapes import refuse_other_shape, shape_of
from sis.errors import SisError, first_of
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import SDConfig, config_of, controlnet, unet

#: Groups of every group norm in the authors' code.
_GROUPS = 32


def weights_of(
    kinds: Iterable[Kind], state: Mapping[str, Tensor], network: nn.Module, where: Path
) -> dict[str, Tensor]:
    """The weights of some networks of a file under the names of a method's network, in float32.

    Args:
        kinds: the networks that the method's network is made of.
        state: everything that the file, or the folder, holds.
        network: the method's network, which may lie on the meta device; its diffusers modules are looked up.
        where: the file or folder; a folder's configurations are compared, too.

    Raises SisError where the file lacks a network, or has one of another shape or with other names.
    """
    found = pieces(state)
    refuse_strangers(state, found, where)
    weights: dict[str, Tensor] = {}
    for kind in kinds:
        if kind not in found:
            raise SisError(f"the file holds no {TITLES[kind]}", where=where)
        prefix, module = part_of(network, kind)
        _refuse_unlike(found[kind], module, where)
        taken = filled(found[kind], module.state_dict(), where)
        weights |= {prefix + name: value for name, value in taken.items()}
    rest = [name for name in network.state_dict() if name not in weights]
    if rest:
        raise SisError(f"the method's network has weights that such files do not: {first_of(rest)}", where=where)
    return {name: weights[name] for name in network.state_dict()}


def authors_weights(
    kinds: Sequence[Kind], tensors: Mapping[str, Tensor], groups: int, where: Path
) -> dict[str, Tensor]:
    """A model's weights under the authors' names; raises SisError for networks that their code does not have."""
    if groups != _GROUPS:
        raise SisError(f"norm_groups: {groups}, the authors' code has {_GROUPS} everywhere", where=where)
    result: dict[str, Tensor] = {}
    taken: set[str] = set()
    for kind in kinds:
        prefix, part = named_part(tensors, kind, where)
        result |= written(kind, part)
        taken |= {prefix + name for name in part}
    rest = [name for name in tensors if name not in taken]
    if rest:
        raise SisError(f"the authors' code has no such weights: {first_of(rest)}", where=where)
    facts_of(kinds, result)  # refuses layers that are no part of such networks, as those of LoRA
    return result


def facts_of(kinds: Iterable[Kind], state: Mapping[str, Tensor]) -> dict[str, object]:
    """The networks that a file's weights fit; raises SisError for weights that are missing or too many."""
    found = pieces(state)
    refuse_strangers(state, found)
    facts: dict[str, object] = {}
    for kind in kinds:
        shape, title = shape_of(found[kind]), TITLES[kind]
        with torch.device("meta"):
            needed = _network_of(kind, shape).state_dict()
        filled(found[kind], {name: value.to("meta") for name, value in needed.items()}, None)
        facts |= {title: f"names of {'its authors' if found[kind].authors else 'diffusers'}", f"{title} fit": shape}
    return facts


def refuse_velocity(fit: Mapping[str, Any], where: Path) -> None:
    """Raise SisError for a base that was trained to predict the velocity, by its card or by its scheduler's file.

    A single file of weights does not tell: there the card's word counts.
    """
    declared = str(fit.get("prediction_type", "epsilon"))
    told = diffusers_folder.predicted(where) if where.is_dir() else ""
    for word, source in ((declared, "the card"), (told, "the folder")):
        if word not in ("", "epsilon"):
            raise SisError(
                f"{source} says prediction_type {word}, and methods here need a base that predicts noise (epsilon)",
                where=where,
                fix="take the base for 512 pixels (SD 2.1-base), not the one for 768",
            )


def _network_of(kind: Kind, shape: Mapping[str, Any]) -> nn.Module:
    """A network of this shape; heads and groups, of which shapes do not tell, are one each."""
    if kind == "vae":
        return KLFirstStage(KLConfig.model_validate({**shape, "norm_groups": 1})).autoencoder
    hints = {name: shape[name] for name in ("hint_channels", "hint_inputs") if name in shape}
    rest = {name: value for name, value in shape.items() if name not in hints}
    config = SDConfig.model_validate({**rest, "heads": [1] * len(shape["block_out_channels"]), "norm_groups": 1})
    return controlnet(config, **hints) if kind == "controlnet" else unet(config)


def _refuse_unlike(piece: Piece, module: nn.Module, where: Path) -> None:
    """Compare the network's shape with what the weights, and a folder's configuration, say of theirs."""
    here = _shape_here(piece.kind, cast("Mapping[str, Any]", module.config))
    refuse_other_shape(piece, here, where)
    if piece.authors and here["norm_groups"] != _GROUPS:
        raise SisError(f"norm_groups: {here['norm_groups']}, the authors' code has {_GROUPS} everywhere", where=where)
    given = diffusers_folder.options(where, piece.kind) if where.is_dir() else None
    if given is None:
        return
    there = _shape_here(piece.kind, given, where)
    other = [f"{name} {there[name]} (the run: {here[name]})" for name in here if there[name] != here[name]]
    if other:
        fix = "give the run the shape that config.json has"
        raise SisError(f"the folder's {TITLES[piece.kind]} has {', '.join(other)}", where=where, fix=fix)


def _shape_here(kind: Kind, options: Mapping[str, Any], where: Path | None = None) -> dict[str, Any]:
    """A configuration of diffusers' in the words of ours."""
    if kind == "vae":
        return _vae_words(options)
    shape = config_of(options, where).model_dump(exclude={"prediction_type"})
    if kind == "unet":
        return shape
    hints = options.get("conditioning_embedding_out_channels", (16, 32, 96, 256))
    del shape["out_channels"]
    return shape | {"hint_channels": list(hints), "hint_inputs": options.get("conditioning_channels", 3)}


def _vae_words(options: Mapping[str, Any]) -> dict[str, Any]:
    attends = [kind.startswith("Attn") for kind in options.get("down_block_types", ("DownEncoderBlock2D",))]
    return {
        "block_out_channels": list(options.get("block_out_channels", (64,))),
        "layers_per_block": options.get("layers_per_block", 1),
        "latent_channels": options.get("latent_channels", 4),
        "attention": [2**level for level, attention in enumerate(attends) if attention],
        "middle_attention": options.get("mid_block_add_attention", True),
        "norm_groups": options.get("norm_num_groups", 32),
    }
