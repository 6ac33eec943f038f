# SPDX-License-Identifier: Apache-2.0
"""SDM: semantic diffusion model, SPADE decoder (Wang et al. 2022); `conditioning: concat` is its Table IV baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sis.config.base import StrictModel
from sis.config.recipe import Recipe
from sis.data.decoded import TrainingData
from sis.diffusion import samplers, schedule
from sis.diffusion.denoiser import guided, network_denoiser
from sis.diffusion.losses import hybrid_loss
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.methods.contract import MapBatch, Method
from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import UNetConfig

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


class FitParams(UNetConfig, Recipe):
    """Network, optimisation and diffusion of one trained model."""

    patch: int = Field(default=1, ge=1, description="side of the pixel patches that the network works on")
    diffusion_steps: int = Field(default=1000, ge=25, description="T, steps of the linear schedule")
    predict: Literal["eps", "v"] = Field(
        default="eps", description="what the network predicts: noise (SDM) or velocity"
    )
    drop_rate: float = Field(default=0.2, ge=0, lt=1, description="share of images whose whole label map is dropped")


class SampleParams(StrictModel):
    """How images are drawn from a trained model."""

    sampler: Literal["ddpm", "ddim"] = Field(default="ddpm", description="ancestral, or DDIM with eta")
    steps: int = Field(default=1000, ge=1, description="network evaluations of the respaced chain")
    guidance: float = Field(default=1.5, ge=1.0, description="classifier-free guidance scale; 1 is none")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")


class SDM(Method):
    FitParams, SampleParams = FitParams, SampleParams
    EXAMPLE_FIT = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "spade_hidden": 8, "steps": 6,
                   "batch_size": 4, "learning_rate": 0.001, "ema": 0.5, "diffusion_steps": 50}  # fmt: skip
    EXAMPLE_SAMPLE = {"steps": 3}

    def build(self) -> None:
        fit: FitParams = self.fit_params
        self.schedule = schedule.linear(fit.diffusion_steps)
        self.velocity = self.schedule if fit.predict == "v" else None
        self.network = PatchedUNet(fit, 3, self.context.labels.width, fit.patch)

    def one_hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.context.labels.width).permute(0, 3, 1, 2).float()

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> Tensor:
        fit, noise = self.fit_params, batch.noise
        kept = noise.uniform("drop", 0, ()) >= fit.drop_rate
        t = noise.integers("t", 0, (), fit.diffusion_steps)
        eps = noise.normal("eps", 0, tuple(batch.images.shape[1:]))
        noisy = self.schedule.q_sample(batch.images, t, eps)
        output = self.network(noisy, t, self.one_hot(batch.labels) * kept[:, None, None, None])
        return hybrid_loss(self.schedule, output, batch.images, noisy, t, eps, fit.predict == "v")

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        how: SampleParams = self.sample_params
        label = self.one_hot(maps.labels)
        learned, velocity = self.fit_params.learn_sigma, self.velocity
        with_label = network_denoiser(self.network, label, learned, velocity)
        without = network_denoiser(self.network, torch.zeros_like(label), learned, velocity)
        denoiser = guided(with_label, without, how.guidance)
        chain, x = (
            self.schedule.respaced(how.steps),
            samplers.start_noise(noise, (3, *maps.labels.shape[-2:])),
        )
        if how.sampler == "ddim":
            x = samplers.ddim(denoiser, chain, x, noise, how.eta)
        else:
            x = samplers.ddpm(denoiser, chain, x, noise)
        return to_uint8(x, maps.image_ids)
