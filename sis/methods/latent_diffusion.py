# SPDX-License-Identifier: Apache-2.0
"""Base latent diffusion: a U-Net in an autoencoder's latents that sees no label map (Rombach et al. 2022).

A base model for ControlNet and SDM-LoRA: trained here, or Stable Diffusion's imported. Its row shows its own images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from sis.config.base import StrictModel
from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion import guards, samplers, schedule
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.methods.contract import MapBatch, Method, Use
from sis.nets.condition import keeps
from sis.nets.latent.base import latent_size
from sis.nets.latent.stable_diffusion import SDConfig, unet
from sis.nets.modulation import multiplying_in

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


class FitParams(SDConfig, Recipe):
    """Network and optimisation of one base model."""

    drop_rate: float = Field(
        default=0.1, ge=0, lt=1, description="share of images that are learnt under the negative prompt"
    )


class SampleParams(StrictModel):
    """How images are drawn from a base model."""

    steps: int = Field(default=50, ge=1, description="DDIM's network evaluations, on latent diffusion's grid")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="of the network's convolutions and matrix products"
    )


class LatentDiffusion(Method):
    ROLE = "control"
    FitParams, SampleParams = FitParams, SampleParams
    USES = {"autoencoder": Use(("autoencoder_kl", "autoencoder_vq")), "text": Use(("prompts",))}
    LATENTS = "autoencoder"
    MIRRORED = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 64, "hours": 24},
        "sample": {"gpus": 1, "memory_gb": 24, "hours": 8},
    }
    EXAMPLE_FIT = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention": [2], "heads": [1, 2],
                   "cross_attention_dim": 8, "norm_groups": 4, "steps": 4, "batch_size": 4, "learning_rate": 0.001,
                   "ema": 0.5}  # fmt: skip
    EXAMPLE_SAMPLE = {"steps": 3}
    EXAMPLE_USES = {
        "autoencoder": {
            "method": "autoencoder_kl",
            "fit": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "scale": "auto", "steps": 4,
                    "batch_size": 4, "learning_rate": 0.001, "ema": 0.5},
        },
        "text": {"method": "prompts", "fit": {"stand_in": True, "tokens": 4, "width": 8}},
    }  # fmt: skip

    def build(self) -> None:
        first_stage, text = (self.context.uses[role].network for role in ("autoencoder", "text"))
        self.shape = latent_size(self.fit_params, first_stage, text, self.context.size)
        self.schedule = schedule.scaled_linear()
        self.network = unet(self.fit_params)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The error of the predicted noise on latents that are drawn from the first stage's posterior."""
        assert self.context.latents is not None
        noise, text = batch.noise, self.context.uses["text"].network
        mirrored = noise.uniform("flip", 0, ()) < 0.5 if self.fit_params.flip else None
        mean, std = self.context.latents.of(batch.image_ids, mirrored)
        latent = mean + std * noise.normal("latent", 0, self.shape)
        kept = keeps(noise.uniform("drop", 0, ()), self.fit_params.drop_rate)[:, None, None]
        context = torch.where(kept, text.of("train", len(kept)), text.of("negative", len(kept)))
        t = noise.integers("t", 0, (), len(self.schedule))
        eps = noise.normal("eps", 0, self.shape)
        predicted = self._eps(self.schedule.q_sample(latent, t, eps), t, context)
        return ((eps - predicted) ** 2).flatten(1).mean(1)

    def _eps(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.network(x, t, context, return_dict=False)[0]

    def denoiser(self, batch: int) -> Denoiser:
        """The network under the prompt of sampling, for any sampler."""
        context, dtype = (
            self.context.uses["text"].network.of("positive", batch),
            getattr(torch, self.sample_params.dtype),
        )

        def denoise(x: Tensor, t: Tensor) -> Prediction:
            with multiplying_in(dtype, x.device):
                return Prediction(self._eps(x, t, context).float(), None)

        return denoise

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        """Images of the base model's own; the label maps are not looked at."""
        with guards.fitting(len(maps.image_ids), self.context.size):
            denoiser = guards.finite(self.denoiser(len(maps.image_ids)), maps.image_ids)
            chain, x = self.schedule.leading(self.sample_params.steps), samplers.start_noise(noise, self.shape)
            latent = samplers.ddim(denoiser, chain, x, noise, self.sample_params.eta, clip=False)
            return to_uint8(self.context.uses["autoencoder"].network.decode(latent), maps.image_ids)
