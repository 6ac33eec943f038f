# SPDX-License-Identifier: Apache-2.0
"""SDM: semantic diffusion model, SPADE decoder (Wang et al. 2022); `conditioning: concat` is its Table IV baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion import guards, samplers, schedule
from sis.diffusion.denoiser import Denoiser
from sis.diffusion.gaussians import Variance
from sis.diffusion.losses import hybrid_terms
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.reuse import ReuseParams, guided_network
from sis.errors import SisError
from sis.methods.contract import MapBatch, Method
from sis.nets.condition import condition, keeps
from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import UNetConfig

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


class FitParams(UNetConfig, Recipe):
    """Network, optimisation and diffusion of one trained model."""

    patch: int = Field(default=1, ge=1, description="side of the pixel patches that the network works on")
    schedule: Literal["linear", "cosine"] = Field(default="linear", description="how noise grows (SDM: linear)")
    diffusion_steps: int = Field(default=1000, ge=25, description="T, steps of the schedule")
    predict: Literal["eps", "v"] = Field(
        default="eps", description="what the network predicts: noise (SDM) or velocity"
    )
    drop_rate: float = Field(
        default=0.2, ge=0, lt=1, description="share of images whose whole label map is dropped, in the last stage"
    )


class SampleParams(ReuseParams):
    """How images are drawn from a trained model."""

    sampler: Literal["ddpm", "ddim", "dpm_solver"] = Field(
        default="ddpm", description="ancestral, DDIM with eta, or DPM-Solver++(2M)"
    )
    steps: Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^((ddim)?\d+|\d+(,\d+)+)$")] = Field(
        default=1000,
        description="network evaluations: 25 (evenly spaced), `ddim25` (a whole stride), `10,15,20` (parts)",
    )
    guidance: float = Field(default=1.5, ge=1.0, description="classifier-free guidance scale; 1 is none")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")
    clip: bool = Field(default=True, description="clip every predicted x_0 to [-1, 1]")
    variance: Variance = Field(
        default="learned", description="of ddpm's steps: learned, or fixed: small (posterior) or large (beta)"
    )
    channel_statistics: list[float] = Field(
        default=[], description="means of red, green, blue, then deviations, in [-1, 1], that every predicted x_0 gets"
    )


class SDM(Method):
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 64, "hours": 24},
        "sample": {"gpus": 1, "memory_gb": 24, "hours": 8},
    }
    FitParams, SampleParams = FitParams, SampleParams
    EXAMPLE_FIT = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "spade_hidden": 8, "steps": 6,
                   "batch_size": 4, "learning_rate": 0.001, "ema": 0.5, "diffusion_steps": 50}  # fmt: skip
    EXAMPLE_SAMPLE = {"steps": 3}

    def build(self) -> None:
        fit: FitParams = self.fit_params
        self._refuse_what_cannot_be()
        self.schedule = schedule.named(fit.schedule, fit.diffusion_steps)
        self.velocity = self.schedule if fit.predict == "v" else None
        self.network = PatchedUNet(fit, 3, self.context.labels.width + self.context.dataset.edges, fit.patch)

    def _refuse_what_cannot_be(self) -> None:
        fit, how, (h, w) = self.fit_params, self.sample_params, self.context.size
        cell = fit.patch * 2 ** (len(fit.multipliers) - 1)
        if h % cell or w % cell:
            fix = f"use a size divisible by {cell}, or fewer multipliers"
            raise SisError(f"this network cannot halve {h}x{w} images as often as it has levels", fix=fix)
        if how.sampler == "ddpm" and how.variance == "learned" and not fit.learn_sigma:
            fix = "set `variance: large` (SDM's released code) or `small` (the posterior's)"
            raise SisError("a network with `learn_sigma: false` has no variance to sample with", fix=fix)
        if how.channel_statistics and (len(how.channel_statistics) != 6 or min(how.channel_statistics[3:]) <= 0):
            raise SisError("channel_statistics are three means and then three positive deviations, or nothing")

    def condition(self, batch: TrainBatch | MapBatch, kept: Tensor | None = None) -> Tensor:
        """One-hot map, edge channel where the dataset has one; zero for samples that are not kept."""
        instances = batch.instances if self.context.dataset.edges else None
        return condition(batch.labels, self.context.labels.width, instances, kept)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> dict[str, Tensor]:
        """L_simple and the variational term; label maps are dropped in the second stage, or where there is but one."""
        fit, noise = self.fit_params, batch.noise
        kept = keeps(noise.uniform("drop", 0, ()), fit.drop_rate if batch.stage == fit.stages else 0.0)
        t = noise.integers("t", 0, (), fit.diffusion_steps)
        eps = noise.normal("eps", 0, tuple(batch.images.shape[1:]))
        noisy = self.schedule.q_sample(batch.images, t, eps)
        output = self.network(noisy, t, self.condition(batch, kept))
        terms = hybrid_terms(self.schedule, output, batch.images, noisy, t, eps, fit.predict == "v")
        return {"simple": terms.simple} | ({} if terms.variational is None else {"vlb": terms.variational})

    def chain(self) -> schedule.Schedule:
        """The steps that sampling visits."""
        return self.schedule.respaced(self.sample_params.steps)

    def denoiser(self, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        """The guided network under label maps `(b, h, w)`, for any sampler; instances as in `MapBatch`."""
        how, learned = self.sample_params, self.fit_params.learn_sigma
        edges = instances if self.context.dataset.edges else None
        label = condition(labels, self.context.labels.width, edges)
        return guided_network(self.network, label, how.guidance, learned, how, self.velocity)

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        size = (maps.labels.shape[-2], maps.labels.shape[-1])
        with guards.fitting(len(maps.image_ids), size, lambda count: self._step(maps, count)):
            return self._drawn(maps, noise, size)

    def _drawn(self, maps: MapBatch, noise: Noise, size: tuple[int, int]) -> Tensor:
        denoiser = guards.finite(self.denoiser(maps.labels, maps.instances), maps.image_ids)
        x = self.draw(denoiser, samplers.start_noise(noise, (3, *size)), noise)
        return to_uint8(x, maps.image_ids)

    def _step(self, maps: MapBatch, count: int) -> None:
        """One network evaluation for the first images of a batch: what sampling them needs of the memory."""
        labels = maps.labels[:count]
        x = torch.zeros(count, 3, *labels.shape[1:], device=labels.device)
        t = torch.zeros(count, dtype=torch.int64, device=labels.device)
        self.denoiser(labels, maps.instances[:count])(x, t)

    def draw(self, denoiser: Denoiser, x: Tensor, noise: Noise) -> Tensor:
        """Images `(b, 3, h, w)` about [-1, 1] from x_T by the run's sampler."""
        how, chain = self.sample_params, self.chain()
        statistics = torch.tensor(how.channel_statistics).reshape(2, 3) if how.channel_statistics else None
        if how.sampler == "ddim":
            return samplers.ddim(denoiser, chain, x, noise, how.eta, how.clip, statistics)
        if how.sampler == "dpm_solver":
            return samplers.dpm_solver(denoiser, chain, x, how.clip, statistics)
        return samplers.ddpm(denoiser, chain, x, noise, how.clip, how.variance, statistics)
