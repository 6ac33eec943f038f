# SPDX-License-Identifier: Apache-2.0
"""The networks that weights of the Stable Diffusion family speak of, and how they differ from the one to be filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sis.checkpoints import ldm_names
from sis.checkpoints.ldm_pieces import TITLES, Piece
from sis.errors import SisError

#: What to do about a difference, by the option that differs.
_CURES = {
    "cross_attention_dim": "SD 1 has 768 and SD 2 has 1024: use the card of that base, and prompts that its own text "
    "encoder embedded",
    "in_channels": "4 is text to image; 9 is a base for inpainting, 5 one with depth",
    "hint_inputs": "the ControlNet was trained on another kind of hint",
}


def shape_of(piece: Piece) -> dict[str, Any]:
    """The shape of a network as far as its weights tell, in the words of `SDConfig` or `KLConfig`.

    Attention heads and groups of norms leave no trace in the weights. Raises SisError for weights without a skeleton.
    """
    shape = _vae_shape(piece) if piece.kind == "vae" else _unet_shape(piece)
    return shape | (_hint_shape(piece) if piece.kind == "controlnet" else {})


def refuse_other_shape(piece: Piece, here: Mapping[str, Any], where: Path | None) -> None:
    """Raise SisError that names what the file's network has otherwise than the run's (`here`, the same words)."""
    there = shape_of(piece)
    other = [name for name in there if there[name] != here[name]]
    if other:
        words = ", ".join(f"{name} {_text(there[name])} (the run: {_text(here[name])})" for name in other)
        cure = next((_CURES[name] for name in other if name in _CURES), "give the run the shape of the file's network")
        raise SisError(f"the file's {TITLES[piece.kind]} has {words}", where=where, fix=cure)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unet_shape(piece: Piece) -> dict[str, Any]:
    layers, levels = _unet_skeleton(piece)
    first = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)]
    attends = [level for level in range(levels) if _has(piece, f"down_blocks.{level}.attentions.0.norm.weight")]
    middle = "mid_block.attentions.0."
    depth = f"{_theirs(piece, middle + 'norm.weight').removesuffix('norm.weight')}transformer_blocks."
    blocks = {name[len(depth) :].split(".")[0] for name in piece.tensors if name.startswith(depth)}
    inner = f"{middle}transformer_blocks.0.attn2.to_k.weight"
    shape = {
        "in_channels": _size(piece, "conv_in.weight", 1),
        "block_out_channels": [_size(piece, name, 0) for name in first],
        "layers_per_block": layers,
        "attention": [2**level for level in attends],
        "transformer_layers": len(blocks),
        "cross_attention_dim": _size(piece, inner, 1),
        "linear_projection": _weight(piece, f"{middle}proj_in.weight").ndim == 2,
    }
    return shape | ({"out_channels": _size(piece, "conv_out.weight", 0)} if piece.kind == "unet" else {})


def _unet_skeleton(piece: Piece) -> tuple[int, int]:
    """Residual blocks a level, and levels."""
    if not piece.authors:
        layers = _count(piece, r"down_blocks\.0\.resnets\.(\d+)\.")
        return layers, _count(piece, r"down_blocks\.(\d+)\.")
    blocks = _count(piece, r"input_blocks\.(\d+)\.")
    halves = sorted(int(m[1]) for name in piece.tensors if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    layers = halves[0] - 1 if halves else blocks - 1
    if layers < 1 or blocks != (layers + 1) * (len(halves) + 1):
        raise SisError(f"{TITLES[piece.kind]} of {blocks} input blocks with down-sampling at {halves}")
    return layers, len(halves) + 1


def _hint_shape(piece: Piece) -> dict[str, Any]:
    """The layers of the hint's embedding: its inputs, and the channels before each halving and after the last."""
    if piece.authors:
        places = sorted({int(m[1]) for n in piece.tensors if (m := re.match(r"input_hint_block\.(\d+)\.weight", n))})
        names = [f"input_hint_block.{place}.weight" for place in places[:-1]]
    else:
        body = "controlnet_cond_embedding"
        count = _count(piece, body + r"\.blocks\.(\d+)\.")
        names = [f"{body}.conv_in.weight", *[f"{body}.blocks.{i}.weight" for i in range(count)]]
    sizes = [tuple(piece.tensors[name].shape) for name in names if name in piece.tensors]
    if not sizes:
        raise SisError("a ControlNet without layers that embed the hint")
    return {"hint_channels": [sizes[0][0], *[size[0] for size in sizes[2::2]]], "hint_inputs": sizes[0][1]}


def _vae_shape(piece: Piece) -> dict[str, Any]:
    word, layer = (r"encoder\.down\.", "block") if piece.authors else (r"encoder\.down_blocks\.", "resnets")
    levels = _count(piece, word + r"(\d+)\.")
    first = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)]
    attends = [n for n in range(levels) if _has(piece, f"encoder.down_blocks.{n}.attentions.0.group_norm.weight")]
    return {
        "block_out_channels": [_size(piece, name, 0) for name in first],
        "layers_per_block": _count(piece, word + rf"0\.{layer}\.(\d+)\."),
        "latent_channels": _size(piece, "quant_conv.weight", 0) // 2,
        "attention": [2**level for level in attends],
        "middle_attention": _has(piece, "encoder.mid_block.attentions.0.group_norm.weight"),
    }


def _theirs(piece: Piece, name: str) -> str:
    """The file's name of one of diffusers' names; for authors' names of blocks one must know how many a level has."""
    if not piece.authors:
        return name
    if piece.kind == "vae":
        return ldm_names.vae_names([name])[name]
    beside = [f"down_blocks.0.resnets.{i}.conv1.weight" for i in range(_unet_skeleton(piece)[0])]
    return ldm_names.unet_names([name, *beside])[name]


def _has(piece: Piece, name: str) -> bool:
    return _theirs(piece, name) in piece.tensors


def _weight(piece: Piece, name: str) -> Tensor:
    theirs = _theirs(piece, name)
    if theirs not in piece.tensors:
        raise SisError(f"a {TITLES[piece.kind]} without {piece.prefix}{theirs}")
    if piece.tensors[theirs].ndim < 2:
        raise SisError(f"{TITLES[piece.kind]} whose {piece.prefix}{theirs} is {tuple(piece.tensors[theirs].shape)}")
    return piece.tensors[theirs]


def _size(piece: Piece, name: str, axis: int) -> int:
    return int(_weight(piece, name).shape[axis])


def _count(piece: Piece, pattern: str) -> int:
    """How many different numbers names have at a place."""
    return len({match[1] for name in piece.tensors if (match := re.match(pattern, name))})
