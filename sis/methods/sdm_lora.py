# SPDX-License-Identifier: Apache-2.0
"""SDM-LoRA: Stable Diffusion with LoRA in its attention and SPADE in its decoder's norms (Wang et al. 2022, Sec. IV-D).

The paper says little more than this line; the rest is our design, listed in docs/sdm-lora.md.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from sis.config.base import StrictModel
from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion import guards, samplers, schedule
from sis.diffusion.denoiser import Denoiser, Prediction, mixed
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.methods.contract import MapBatch, Method, Use
from sis.nets.condition import condition, keeps
from sis.nets.latent.base import latent_size
from sis.nets.latent.lora import LoRAConfig, add_lora, merged
from sis.nets.latent.spade_norm import SpadeUNet
from sis.nets.latent.stable_diffusion import unet
from sis.nets.modulation import LabelMaps, multiplying_in

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


#: Small models for `sis check`.
_AUTOENCODER = {
    "method": "autoencoder_kl",
    "fit": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "scale": "auto", "steps": 4,
            "batch_size": 4, "learning_rate": 0.001, "ema": 0.5},
}  # fmt: skip
_TEXT = {"method": "prompts", "fit": {"stand_in": True, "tokens": 4, "width": 8}}
_BASE = {
    "method": "latent_diffusion",
    "fit": {"block_out_channels": [8, 16], "layers_per_block": 1, "attention": [2], "heads": [1, 2],
            "cross_attention_dim": 8, "norm_groups": 4, "steps": 4, "batch_size": 4, "learning_rate": 0.001,
            "ema": 0.5},
    "uses": {"autoencoder": _AUTOENCODER, "text": _TEXT},
}  # fmt: skip


class FitParams(LoRAConfig, Recipe):
    """What is added to the base model, and how it is optimised."""

    spade_hidden: int = Field(default=128, ge=1, description="channels between the label map and gamma and beta (SDM)")
    spade_middle: bool = Field(default=False, description="modulate the middle block too, as SDM's code does")
    drop_rate: float = Field(
        default=0.2, ge=0, lt=1, description="share of images whose whole label map is dropped, in the last stage"
    )


class SampleParams(StrictModel):
    """How images are drawn from a trained model."""

    steps: int = Field(default=20, ge=1, description="DDIM's network evaluations, on latent diffusion's grid")
    guidance: float = Field(default=1.5, ge=1.0, description="classifier-free guidance scale; 1 is none")
    null: Literal["label", "prompt", "both"] = Field(
        default="label", description="what guidance's other branch lacks: the label map, the prompt (negative), or both"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="of the network's convolutions and matrix products"
    )
    reuse_memory: int = Field(
        default=2048, ge=0, description="MiB for scales and shifts that all steps of a batch share; changes no bit"
    )


class SDMLoRA(Method):
    FitParams, SampleParams = FitParams, SampleParams
    USES = {
        "autoencoder": Use(("autoencoder_kl", "autoencoder_vq")),
        "base": Use(("latent_diffusion",), weights="fit"),
        "text": Use(("prompts",)),
    }
    LATENTS = "autoencoder"
    MIRRORED = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 48, "hours": 24},
        "sample": {"gpus": 1, "memory_gb": 24, "hours": 8},
    }
    EXAMPLE_FIT = {"lora_rank": 2, "spade_hidden": 8, "steps": 4, "batch_size": 4, "learning_rate": 0.01, "ema": 0.5}
    EXAMPLE_SAMPLE = {"steps": 3}
    EXAMPLE_USES = {"autoencoder": _AUTOENCODER, "base": _BASE, "text": _TEXT}

    def build(self) -> None:
        fit, uses = self.fit_params, self.context.uses
        base = uses["base"]
        self.shape = latent_size(base.fit_params, uses["autoencoder"].network, uses["text"].network, self.context.size)
        self.schedule = schedule.scaled_linear()
        known = not next(base.network.parameters()).is_meta  # while images are sampled, the weights come from the model
        adapted = copy.deepcopy(base.network) if known else unet(base.fit_params)
        add_lora(adapted, fit)
        channels = self.context.labels.width + self.context.dataset.edges
        self.network = SpadeUNet(adapted, channels, fit.spade_hidden, fit.spade_middle)

    def layout(self, labels: Tensor, instances: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """The label map at the latent's size `(b, k, h, w)`: the top-left pixel of every cell, as in SPADE's pyramid.

        Instances get their edges marked at that size. Zero throughout for samples that are not kept.
        """
        factor = self.context.uses["autoencoder"].network.factor
        small = labels[:, ::factor, ::factor]
        edges = instances[:, ::factor, ::factor] if instances is not None and self.context.dataset.edges else None
        return condition(small, self.context.labels.width, edges, kept)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        """Train LoRA and the modulation; everything of the base model stays as it is."""
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The error of the predicted noise on latents that are drawn from the first stage's posterior."""
        assert self.context.latents is not None
        fit, noise = self.fit_params, batch.noise
        mirrored = noise.uniform("flip", 0, ()) < 0.5 if fit.flip else None
        mean, std = self.context.latents.of(batch.image_ids, mirrored)
        latent = mean + std * noise.normal("latent", 0, self.shape)
        kept = keeps(noise.uniform("drop", 0, ()), fit.drop_rate if batch.stage == fit.stages else 0.0)
        t = noise.integers("t", 0, (), len(self.schedule))
        eps = noise.normal("eps", 0, self.shape)
        text = self.context.uses["text"].network.of("train", len(kept))
        layout = self.layout(batch.labels, batch.instances, kept)
        predicted = self.network(self.schedule.q_sample(latent, t, eps), t, text, layout)
        return ((eps - predicted) ** 2).flatten(1).mean(1)

    def denoiser(self, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        """The guided network under label maps `(b, h, w)`, for any sampler; both branches in one call."""
        how, batch, text = self.sample_params, len(labels), self.context.uses["text"].network
        layout, words = self.layout(labels, instances), text.of("positive", batch)
        guides = how.guidance != 1.0
        if guides:
            without_label, without_words = how.null != "prompt", how.null != "label"
            layout = torch.cat([layout, torch.zeros_like(layout) if without_label else layout])
            words = torch.cat([words, text.of("negative", batch) if without_words else words])
        dtype, (_, h, w) = getattr(torch, how.dtype), self.shape
        maps = LabelMaps(self.network.spade_norms((h, w)), layout, how.reuse_memory * 2**20, dtype)

        def denoise(x: Tensor, t: Tensor) -> Prediction:
            if guides:
                x, t = torch.cat([x, x]), torch.cat([t, t])
            with multiplying_in(dtype, x.device):
                eps = self.network(x, t, words, maps).float()
            if not guides:
                return Prediction(eps, None)
            with_layout, null = eps.chunk(2)
            return mixed(Prediction(with_layout, None), Prediction(null, None), how.guidance)

        return denoise

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        how, ids = self.sample_params, maps.image_ids
        with guards.fitting(len(ids), self.context.size), merged(self.network.unet):
            denoiser = guards.finite(self.denoiser(maps.labels, maps.instances), ids)
            x = samplers.start_noise(noise, self.shape)
            latent = samplers.ddim(denoiser, self.schedule.leading(how.steps), x, noise, how.eta, clip=False)
            return to_uint8(self.context.uses["autoencoder"].network.decode(latent), ids)
