# SPDX-License-Identifier: Apache-2.0
"""What the authors of latent diffusion and ControlNet call the weights that diffusers calls otherwise.

Facts from the names in CompVis/latent-diffusion, Stability-AI/stablediffusion and lllyasviel/ControlNet checkpoints:
theirs count blocks through all levels, diffusers' count levels and layers; values are equal.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from sis.errors import SisError

_WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
_VAE_LAYERS = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
               "conv_shortcut": "nin_shortcut"}  # fmt: skip
#: 1x1 convolutions of theirs that are linear layers of diffusers'.
_VAE_LINES = re.compile(r"\.(attn_\d|attn\.\d+)\.(q|k|v|proj_out)\.weight$")
#: What diffusers' autoencoders of 2022 and 2023 called the four layers of attention.
_VAE_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_names(ours: Collection[str]) -> dict[str, str]:
    """The authors' name of each of diffusers' names of a U-Net or ControlNet; which blocks there are, they tell."""
    layers = len({name.split(".")[3] for name in ours if name.startswith("down_blocks.0.resnets.")})
    hints = len({name.split(".")[2] for name in ours if name.startswith("controlnet_cond_embedding.blocks.")})
    attends = {name.split(".")[1] for name in ours if name.startswith("up_blocks.") and ".attentions." in name}
    found = {}
    for name in ours:
        body, _, kind = name.rpartition(".")
        found[name] = f"{_unet_name(body, layers, hints, attends)}.{kind}"
    return found


def _unet_name(body: str, layers: int, hints: int, attends: Collection[str]) -> str:
    if body in _WHOLE:
        return _WHOLE[body]
    if body == "controlnet_cond_embedding.conv_out":
        return f"input_hint_block.{2 * hints + 2}"
    if match := re.fullmatch(r"controlnet_cond_embedding\.blocks\.(\d+)", body):
        return f"input_hint_block.{2 * int(match[1]) + 2}"
    if match := re.fullmatch(r"controlnet_down_blocks\.(\d+)", body):
        return f"zero_convs.{match[1]}.0"
    if match := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", body):
        return f"middle_block.{_MIDDLE.get(match[1], match[1])}.{_RESIDUAL.get(match[2], match[2])}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", body):
        way, level, kind, place, layer = match.groups()
        first = int(level) * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if level in attends else 1}.{layer}"
        block = f"input_blocks.{first + 1 + int(place)}" if way == "down" else f"output_blocks.{first + int(place)}"
        return f"{block}.0.{_RESIDUAL.get(layer, layer)}" if kind == "resnets" else f"{block}.1.{layer}"
    raise SisError(f"no weight of a Stable Diffusion U-Net or ControlNet: {body}")


def vae_names(ours: Collection[str]) -> dict[str, str]:
    """The authors' name of each of diffusers' names of an autoencoder, KL or VQ."""
    levels = len({name.split(".")[2] for name in ours if name.startswith("decoder.up_blocks.")})
    return {name: _vae_name(name, levels) for name in ours}


def _vae_name(name: str, levels: int) -> str:
    body, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(\w+\.\d)\.(.+)", body):
        return f"{match[1]}.mid.{_VAE_MIDDLE.get(match[2], match[2])}.{_VAE_LAYERS.get(match[3], match[3])}.{kind}"
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", body):
        side, level, part, place, layer = match.groups()
        level = level if side == "encoder.down" else str(levels - 1 - int(level))  # theirs count from the finest
        if part in ("downsamplers", "upsamplers"):
            return f"{side}.{level}.{part.removesuffix('rs')}.{layer}.{kind}"
        word = {"resnets": "block", "attentions": "attn"}
        return f"{side}.{level}.{word.get(part, part)}.{place}.{_VAE_LAYERS.get(layer, layer)}.{kind}"
    return f"{body.replace('conv_norm_out', 'norm_out')}.{kind}"


def vae_shaped(theirs: str, value: Tensor) -> Tensor:
    """A weight of diffusers' in the shape that it has under the authors' name: attention is a 1x1 convolution there."""
    return value[..., None, None] if _VAE_LINES.search(theirs) else value


def modern_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers autoencoder's weights under the names that diffusers gives them today."""
    words = "|".join(_VAE_OLD)
    pattern = re.compile(rf"(?<=\.attentions\.)(\d+)\.({words})\.")
    return {pattern.sub(lambda m: f"{m[1]}.{_VAE_OLD[m[2]]}.", name): value for name, value in state.items()}
