# SPDX-License-Identifier: Apache-2.0
"""IIDM: SDM's network on an autoencoder's latents, started from a noised style photograph (Liu & Liu 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion import guards, samplers, schedule
from sis.diffusion.between_rounds import through_jpeg, truncated
from sis.diffusion.colour_transfer import transferred
from sis.diffusion.denoiser import Denoiser
from sis.diffusion.gaussians import Variance
from sis.diffusion.losses import hybrid_terms
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.refinement import RECIPES, Round, planned
from sis.diffusion.reuse import ReuseParams, guided_network
from sis.diffusion.style_start import StepRule, denoised, noised, of_round, start_at
from sis.errors import SisError
from sis.methods.contract import MapBatch, Method, Use
from sis.nets.condition import condition, keeps
from sis.nets.sdm_unet import SDMUNet, UNetConfig

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun

T = TypeVar("T")
Share = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(ge=1)]
Steps = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^((ddim)?\d+|\d+(,\d+)+)$")]


class FitParams(UNetConfig, Recipe):
    """Network, optimisation and diffusion of one trained model; the network works on latents."""

    multipliers: Annotated[list[int], Field(min_length=1)] = Field(
        default=[1, 1, 2, 3, 4], description="channels of each level, in units of width"
    )
    attention: list[int] = Field(
        default=[4, 8, 16], description="down-sampling factors of the latent with self-attention"
    )
    schedule: Literal["linear", "cosine"] = Field(default="linear", description="how noise grows (IIDM: linear)")
    diffusion_steps: int = Field(default=1000, ge=25, description="T, steps of the schedule")
    drop_rate: float = Field(
        default=0.2, ge=0, lt=1, description="share of images whose whole label map is dropped, in the last stage"
    )


class SampleParams(ReuseParams):
    """How images are drawn from a trained model. Where a value is left out, the recipe's own one holds."""

    recipe: Literal["release", "paper", "dm"] = Field(
        default="release",
        description="the authors' three stages, the paper's Algorithm 2 as printed, or pure noise (baseline DM)",
    )
    rounds: int = Field(default=0, ge=0, description="K, rounds of refinement; 0: as many as the recipe has")
    start: Share | list[Share] = Field(
        default=[], description="share of the schedule that a round's picture is noised to (0.64: step 640 of 1000)"
    )
    steps: Steps | list[Steps] = Field(
        default=[], description="steps of the respaced schedule, of all rounds or of each, as SDM's"
    )
    guidance: Scale | list[Scale] = Field(
        default=[], description="classifier-free guidance scale, of all rounds or of each; 1 is none"
    )
    sampler: Literal["recipe", "ddim", "ddpm"] = Field(
        default="recipe", description="DDIM with eta (release, dm) or ancestral steps (paper, Eq. 5)"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")
    variance: Variance = Field(default="learned", description="of ancestral steps: learned, or fixed: small or large")
    colour_transfer: Literal["none", "reinhard_lab8", "reinhard_lab"] = Field(
        default="reinhard_lab8",
        description="give the picture the style's colours between rounds: on 8-bit CIELAB as released, or unrounded",
    )
    final_transfer: bool = Field(default=False, description="transfer colours after the last round too")
    between: Literal["lossless", "jpeg"] = Field(
        default="lossless", description="what pictures pass through between rounds; jpeg of quality 75 as released"
    )
    final_jpeg: bool = Field(default=False, description="pass the last pictures through JPEG too, as released")
    levels: Literal["truncated", "rounded"] = Field(
        default="truncated", description="how decoded pictures become 8-bit; the authors drop the decimals"
    )


class IIDM(Method):
    NEEDS = ("references",)
    REFERENCE = "latent_start"
    USES = {"autoencoder": Use(("autoencoder_vq", "autoencoder_kl"))}
    LATENTS = "autoencoder"
    MIRRORED = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 48, "hours": 24},
        "sample": {"gpus": 1, "memory_gb": 24, "hours": 8},
    }
    FitParams, SampleParams = FitParams, SampleParams
    EXAMPLE_FIT = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "spade_hidden": 8, "groups": 4,
                   "steps": 6, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5, "diffusion_steps": 50}  # fmt: skip
    EXAMPLE_SAMPLE = {"steps": ["ddim10", "ddim10", 5]}
    EXAMPLE_USES = {
        "autoencoder": {
            "method": "autoencoder_vq",
            "fit": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "codes": 32, "steps": 4,
                    "batch_size": 4, "learning_rate": 0.001, "ema": 0.5},
        }
    }  # fmt: skip

    def build(self) -> None:
        fit, how = self.fit_params, self.sample_params
        self.first_stage, self.recipe = self.context.uses["autoencoder"].network, RECIPES[how.recipe]
        self.latent_size = self._latent_size()
        self.schedule = schedule.named(fit.schedule, fit.diffusion_steps)
        self.rounds = planned(how.recipe, how.rounds, *(_listed(v) for v in (how.start, how.steps, how.guidance)))
        sampler = self.recipe.sampler if how.sampler == "recipe" else how.sampler
        self.rule = StepRule(sampler, how.eta, False, how.variance)
        if sampler == "ddpm" and how.variance == "learned" and not fit.learn_sigma:
            fix = "set `variance: large` or `small`"
            raise SisError("a network with `learn_sigma: false` has no variance to sample with", fix=fix)
        if how.final_transfer and how.colour_transfer == "none":
            raise SisError("`final_transfer: true` needs a way to transfer colours", fix="set colour_transfer")
        self.network = SDMUNet(fit, self.first_stage.channels, self.context.labels.width)

    def _latent_size(self) -> tuple[int, int]:
        """Height and width; raises SisError where autoencoder or network cannot halve so often."""
        (h, w), factor, cell = self.context.size, self.first_stage.factor, 2 ** (len(self.fit_params.multipliers) - 1)
        if h % (factor * cell) or w % (factor * cell):
            fix = f"use a size divisible by {factor * cell}, or fewer multipliers"
            raise SisError(
                f"this network cannot halve the latents of {h}x{w} images as often as it has levels", fix=fix
            )
        return h // factor, w // factor

    def condition(self, labels: Tensor, kept: Tensor | None = None) -> Tensor:
        """One-hot map `(b, k, h, w)` at the latent's resolution, without edges; zero for samples that are not kept.

        A latent pixel has the label at the centre of the pixels it stands for, as Pillow's nearest filter has it.
        """
        factor = self.first_stage.factor
        small = labels[:, factor // 2 :: factor, factor // 2 :: factor]
        return condition(small, self.context.labels.width, None, kept)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        if self.fit_params.preview_every and self._shows_style():
            fix = "set `preview_every: 0`, or `recipe: dm` under sample"
            raise SisError("pictures of the training have no style photographs to start from", fix=fix)
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> dict[str, Tensor]:
        """L_simple and the variational term, as SDM's, on latents before they are quantised."""
        assert self.context.latents is not None
        fit, noise = self.fit_params, batch.noise
        mirrored = noise.uniform("flip", 0, ()) < 0.5 if fit.flip else None
        latents, _ = self.context.latents.of(batch.image_ids, mirrored)
        kept = keeps(noise.uniform("drop", 0, ()), fit.drop_rate if batch.stage == fit.stages else 0.0)
        t = noise.integers("t", 0, (), fit.diffusion_steps)
        eps = noise.normal("eps", 0, tuple(latents.shape[1:]))
        noisy = self.schedule.q_sample(latents, t, eps)
        output = self.network(noisy, t, self.condition(batch.labels, kept))
        terms = hybrid_terms(self.schedule, output, latents, noisy, t, eps)
        return {"simple": terms.simple} | ({} if terms.variational is None else {"vlb": terms.variational})

    def chain(self, part: Round) -> schedule.Schedule:
        """The respaced schedule of a round."""
        return self.schedule.respaced(part.steps) if part.steps else self.schedule

    def denoiser(self, labels: Tensor, guidance: float) -> Denoiser:
        """The guided network on latents under label maps `(b, H, W)` of the images' size, for any sampler."""
        label, learned = self.condition(labels), self.fit_params.learn_sigma
        return guided_network(self.network, label, guidance, learned, self.sample_params)

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        if maps.references is None and self._shows_style():
            fix = "pair the label maps with style photographs, or use `recipe: dm`"
            raise SisError("these label maps come without style photographs", fix=fix)
        with guards.fitting(len(maps.image_ids), self.context.size, lambda count: self._step(maps, count)):
            return self._drawn(maps, noise)

    def _shows_style(self) -> bool:
        """Whether a style photograph is needed; the baseline DM goes without."""
        return self.sample_params.final_transfer or not self.recipe.from_noise

    def _drawn(self, maps: MapBatch, noise: Noise) -> Tensor:
        how, images = self.sample_params, maps.references
        for number, part in enumerate(self.rounds):
            if number and images is not None:
                images = self.handed_on(images, maps.references)
            own = noise if self.recipe.from_noise else of_round(noise, number)
            images = self.one_round(part, None if self.recipe.from_noise else images, maps, own)
        assert images is not None
        if how.final_transfer:
            images = self._coloured(images, maps.references)
        return through_jpeg(images) if how.final_jpeg else images

    def one_round(self, part: Round, images: Tensor | None, maps: MapBatch, noise: Noise) -> Tensor:
        """One round from uint8 images `(b, 3, H, W)` to others; None: from pure noise."""
        chain, shape = self.chain(part), (self.first_stage.channels, *self.latent_size)
        if images is None:
            z, calls = samplers.start_noise(noise, shape), len(chain)
        else:
            start = start_at(chain, part.start, len(self.schedule), self.recipe.late)
            z, calls = noised(chain, self.encoded(images), start, noise), start.calls
        denoiser = guards.finite(self.denoiser(maps.labels, part.guidance), maps.image_ids)
        return self.decoded(denoised(denoiser, chain, z, calls, noise, self.rule), maps.image_ids)

    def encoded(self, images: Tensor) -> Tensor:
        """Scaled latents `(b, c, h, w)`, before they are quantised, of uint8 images `(b, 3, H, W)`."""
        return self.first_stage.moments(images.float() / 127.5 - 1)[0]

    def decoded(self, latents: Tensor, image_ids: Sequence[str]) -> Tensor:
        """Uint8 images `(b, 3, H, W)` of scaled latents."""
        pixels = self.first_stage.decode(latents)
        return (
            to_uint8(pixels, tuple(image_ids))
            if self.sample_params.levels == "rounded"
            else truncated(pixels, image_ids)
        )

    def handed_on(self, images: Tensor, references: Tensor | None) -> Tensor:
        """What the next round starts from: the last one's images in the style's colours, written and read again."""
        how = self.sample_params
        if how.between == "jpeg":
            images = through_jpeg(images)
        if how.colour_transfer == "none":
            return images
        images = self._coloured(images, references)
        return through_jpeg(images) if how.between == "jpeg" else images

    def _coloured(self, images: Tensor, references: Tensor | None) -> Tensor:
        assert references is not None
        return transferred(self.sample_params.colour_transfer, images, references)

    def _step(self, maps: MapBatch, count: int) -> None:
        """What sampling the first images of a batch needs of the memory: encoding, one evaluation, decoding."""
        z = torch.zeros(count, self.first_stage.channels, *self.latent_size, device=maps.labels.device)
        if maps.references is not None:
            self.encoded(maps.references[:count])
        t = torch.zeros(count, dtype=torch.int64, device=z.device)
        self.denoiser(maps.labels[:count], max(part.guidance for part in self.rounds))(z, t)
        self.decoded(z, maps.image_ids[:count])


def _listed(value: T | list[T]) -> list[T]:
    return value if isinstance(value, list) else [value]
