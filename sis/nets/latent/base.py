# SPDX-License-Identifier: Apache-2.0
"""Whether a base model, a first stage and text embeddings fit one another, before anything is computed with them."""

from __future__ import annotations

from sis.errors import SisError
from sis.nets.latent.first_stage import FirstStage, refuse_sides
from sis.nets.latent.stable_diffusion import SDConfig
from sis.nets.latent.text import PromptEmbeddings


def latent_size(
    config: SDConfig, first_stage: FirstStage, text: PromptEmbeddings, size: tuple[int, int]
) -> tuple[int, int, int]:
    """The latent's (channels, height, width) for images of a size (height, width).

    Raises SisError for a base that predicts velocities, embeddings of another width, latents of other channels, and
    sizes that the autoencoder or the U-Net cannot halve as often as they have levels.
    """
    if config.prediction_type != "epsilon":
        what = (
            f"the base model predicts {config.prediction_type}, as those for 768 pixels do; noise is needed (epsilon)"
        )
        raise SisError(what, fix="use SD 2.1-base (512 pixels) or SD 1.5")
    if text.width != config.cross_attention_dim:
        what = f"the text embeddings are {text.width} wide, the base model reads {config.cross_attention_dim}"
        raise SisError(what, fix="embed the prompts with the base model's own text encoder (`sis embed-prompts`)")
    if not first_stage.channels == config.in_channels == config.out_channels:
        read = f"{config.in_channels} and answers {config.out_channels}"
        raise SisError(f"the autoencoder's latents have {first_stage.channels} channels, the base model reads {read}")
    refuse_sides(first_stage, size)
    h, w = (side // first_stage.factor for side in size)
    if h % config.factor or w % config.factor:
        fix = f"use images of sides divisible by {config.factor * first_stage.factor}, or fewer levels"
        raise SisError(f"the base model cannot halve latents of {w}x{h} as often as it has levels", fix=fix)
    return config.in_channels, h, w
