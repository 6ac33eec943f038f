# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's U-Net and its ControlNet as diffusers builds them, from one small description of their shape.

Facts of SD 2.1-base and SD 1.5: the models' published configurations; ControlNet: Zhang et al. 2023, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sis.config.base import StrictModel
from sis.errors import SisError

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

#: Channels of the hint's embedding before the last convolution; each one after the first halves the hint's sides.
HINT_CHANNELS = (16, 32, 96, 256)

_WITH, _WITHOUT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
#: What diffusers' configurations may say besides, because it is what `SDConfig` means.
_IMPLIED = {"flip_sin_to_cos": True, "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu",
            "center_input_sample": False, "only_cross_attention": False, "downsample_padding": 1, "norm_eps": 1e-5,
            "mid_block_scale_factor": 1, "dropout": 0.0, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
            "reverse_transformer_layers_per_block": None, "dual_cross_attention": False,
            "class_embed_type": None, "addition_embed_type": None, "num_class_embeds": None, "conv_in_kernel": 3,
            "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
            "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
            "timestep_post_act": None, "time_cond_proj_dim": None, "conv_out_kernel": 3, "attention_type": "default",
            "class_embeddings_concat": False, "cross_attention_norm": None,
            "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False}  # fmt: skip


class SDConfig(StrictModel):
    """Shape of a U-Net with cross-attention. The defaults are SD 2.1-base's.

    SD 1.5 differs in three: `heads: [8, 8, 8, 8]`, `cross_attention_dim: 768`, `linear_projection: false`.
    """

    in_channels: int = Field(default=4, ge=1, description="channels of the latent")
    out_channels: int = Field(default=4, ge=1, description="channels of the answer")
    block_out_channels: Annotated[list[int], Field(min_length=1)] = Field(
        default=[320, 640, 1280, 1280], description="channels of each level, finest first"
    )
    layers_per_block: int = Field(default=2, ge=1, description="residual blocks a level (the decoder has one more)")
    attention: list[int] = Field(default=[1, 2, 4], description="down-sampling factors with attention")
    heads: list[int] = Field(default=[5, 10, 20, 20], description="attention heads of each level")
    transformer_layers: int = Field(default=1, ge=1, description="transformer blocks of an attention layer")
    cross_attention_dim: int = Field(default=1024, ge=1, description="width of the text embeddings")
    linear_projection: bool = Field(
        default=True, description="into and out of attention by linear layers; false: by 1x1 convolutions"
    )
    norm_groups: int = Field(default=32, ge=1, description="groups of every group norm; narrow networks want fewer")
    prediction_type: Literal["epsilon", "v_prediction"] = Field(
        default="epsilon", description="what the network was trained to predict; bases for 768 pixels predict v"
    )

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        if len(self.heads) != levels:
            raise ValueError(f"heads needs a number for each of {levels} levels, found {self.heads}")
        if any(h < 1 or c % h for c, h in zip(channels, self.heads, strict=True)):
            raise ValueError(f"heads {self.heads} do not divide block_out_channels {channels}")
        if any(c < 1 or c % self.norm_groups for c in channels):
            raise ValueError(f"norm_groups {self.norm_groups} does not divide block_out_channels {channels}")
        factors = [2**level for level in range(levels)]
        if set(self.attention) - set(factors):
            raise ValueError(f"attention at {self.attention}, the levels have the factors {factors}")
        return self

    @property
    def factor(self) -> int:
        """Both sides of a latent must be divisible by this."""
        return 2 ** (len(self.block_out_channels) - 1)


def unet(config: SDConfig) -> UNet2DConditionModel:
    """The U-Net: called with (x `(b, c, h, w)`, t `(b,)`, text `(b, tokens, width)`); answers `.sample` like x."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    ups = tuple(_kinds(config)[1][::-1])
    return UNet2DConditionModel(out_channels=config.out_channels, up_block_types=ups, **_common(config))


def controlnet(config: SDConfig, hint_channels: Sequence[int] = HINT_CHANNELS, hint_inputs: int = 3) -> ControlNetModel:
    """A ControlNet for that U-Net; its zero convolutions are zero, the rest is random.

    Args:
        config: the U-Net's shape.
        hint_channels: of the hint's embedding; a hint's sides are 2^(their number - 1) times those of the latent.
        hint_inputs: channels of the hint, 3 for colours.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel(
        conditioning_channels=hint_inputs,
        conditioning_embedding_out_channels=tuple(hint_channels),
        **_common(config),
    )


def start_controlnet(controlnet: ControlNetModel, unet: UNet2DConditionModel) -> None:
    """Copy the U-Net's time embedding, encoder and middle block into a ControlNet (Zhang et al. 2023, Sec. 3.1).

    The hint's embedding and the zero convolutions stay as they are. Raises SisError for a ControlNet of another shape.
    """
    for name in ("time_embedding", "conv_in", "down_blocks", "mid_block"):
        try:
            getattr(controlnet, name).load_state_dict(getattr(unet, name).state_dict())
        except RuntimeError as error:
            raise SisError(f"the ControlNet's {name} is not shaped like the U-Net's") from error


def config_of(options: Mapping[str, Any], where: object = None) -> SDConfig:
    """The shape that diffusers' configuration of a U-Net or ControlNet speaks of (`config.json` or `.config`).

    Options that are missing have diffusers' defaults. Raises SisError for networks that `SDConfig` cannot describe.
    """
    from sis.config.strict_yaml import validate

    downs = list(options.get("down_block_types", (_WITH[0],) * 3 + (_WITHOUT[0],)))
    channels = list(options.get("block_out_channels", (320, 640, 1280, 1280)))
    shape = {
        "in_channels": options.get("in_channels", 4),
        "out_channels": options.get("out_channels", 4),
        "block_out_channels": channels,
        "layers_per_block": _single(options, "layers_per_block", 2, where),
        "attention": [2**level for level, kind in enumerate(downs) if kind == _WITH[0]],
        "heads": _each(options.get("num_attention_heads") or options.get("attention_head_dim", 8), len(channels)),
        "transformer_layers": _single(options, "transformer_layers_per_block", 1, where),
        "cross_attention_dim": _single(options, "cross_attention_dim", 1280, where),
        "linear_projection": options.get("use_linear_projection", False),
        "norm_groups": options.get("norm_num_groups", 32),
    }
    other = [f"{k}: {options[k]}" for k, v in _IMPLIED.items() if options.get(k, v) != v]
    odd = [kind for kind in downs if kind not in (_WITH[0], _WITHOUT[0])]
    ups = [_WITH[1] if kind == _WITH[0] else _WITHOUT[1] for kind in downs[::-1]]
    if odd or list(options.get("up_block_types", ups)) != ups or len(downs) != len(channels):
        other.append(f"blocks {downs} and {list(options.get('up_block_types', ups))}")
    if other:
        raise SisError(f"no U-Net of the Stable Diffusion 1 and 2 family: {', '.join(other)}", where=where)
    return validate(SDConfig, shape, where or "the U-Net's configuration")


def _common(config: SDConfig) -> dict[str, Any]:
    """The options that U-Net and ControlNet share, as diffusers calls them: `attention_head_dim` counts heads."""
    return {
        "in_channels": config.in_channels,
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": tuple(_kinds(config)[0]),
        "attention_head_dim": tuple(config.heads),
        "transformer_layers_per_block": config.transformer_layers,
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.norm_groups,
    }


def _kinds(config: SDConfig) -> tuple[list[str], list[str]]:
    """Diffusers' words for the encoder's and the decoder's levels, finest first."""
    attends = [2**level in config.attention for level in range(len(config.block_out_channels))]
    chosen = [_WITH if a else _WITHOUT for a in attends]
    return [down for down, _ in chosen], [up for _, up in chosen]


def _each(value: Any, levels: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _single(options: Mapping[str, Any], name: str, default: int, where: object) -> Any:
    """An option that may be given for each level, but must be the same for all."""
    values = _each(options.get(name, default), 1)
    if len(set(map(str, values))) != 1:
        raise SisError(f"no U-Net of the Stable Diffusion 1 and 2 family: {name}: {values}", where=where)
    return values[0]
