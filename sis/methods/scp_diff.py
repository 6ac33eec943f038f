# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff: a ControlNet on Stable Diffusion whose chains start from noise priors (Bao et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.hints import Palette, channel_palette, hints_of
from sis.data.manifest import stable_hash
from sis.data.training_data import TrainingData
from sis.diffusion import between_rounds, guards, samplers
from sis.diffusion.denoiser import Denoiser
from sis.diffusion.latent_chain import Eps, batched_guided, in_type, noised_prior
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.schedule import Schedule, scaled_linear
from sis.diffusion.truncation import Start, Truncation, truncated
from sis.errors import SisError
from sis.methods.contract import MapBatch, Method, Use
from sis.nets.condition import keeps
from sis.nets.latent.base import latent_size
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.fine_tuning import noise_error, start_from, unlock
from sis.nets.latent.first_stage import network_input
from sis.nets.latent.stable_diffusion import HINT_CHANNELS, controlnet, unet
from sis.priors.draws import drawn
from sis.priors.files import PriorFacts, merge_files, prior_tensors, read_prior, statistics_tensors
from sis.priors.labels import latent_labels
from sis.priors.params import Kind, Policy, StatisticsParams
from sis.priors.prior import Prior
from sis.priors.statistics import Encoded, Statistics, accumulate

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun

#: Pixels that are decoded together at most; an autoencoder needs far more memory a pixel than the U-Net.
_DECODED = 2**20

#: Small models for `sis check`.
_AUTOENCODER = {"method": "autoencoder_kl",
                "fit": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "scale": "auto",
                        "steps": 4, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}}  # fmt: skip
_BASE = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention": [2], "heads": [1, 2],
         "cross_attention_dim": 8, "norm_groups": 4, "steps": 4, "batch_size": 4, "learning_rate": 0.001,
         "ema": 0.5}  # fmt: skip
_TEXT = {"method": "prompts", "fit": {"stand_in": True, "tokens": 4, "width": 8}}


class FitParams(Recipe):
    """Fine-tuning of a ControlNet and of the base model's decoder; the base model has the network's shape."""

    steps: int = Field(default=100_000, ge=1, description="optimiser steps (of the first stage)")
    learning_rate: float = Field(default=1e-5, gt=0, description="AdamW's learning rate after warm-up")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the averaged weights; 0: the last weights")
    flip: bool = Field(default=False, description="mirror half of the images")
    palette: Palette = Field(
        default="colours", description="colours of hints: grid (ADE20K), voc (COCO-Stuff) or the label table's own"
    )
    hint_channels: list[int] = Field(
        default=list(HINT_CHANNELS), min_length=1, description="of the hint's embedding, one more than halvings"
    )
    locked: bool = Field(default=False, description="keep the base model's decoder as it is, as ControlNet does")
    drop_text: float = Field(
        default=0.0, ge=0, lt=1, description="share of images that are learnt under the negative prompt"
    )
    lora_rank: int = Field(default=0, ge=0, description="rank of LoRA on the base model's attention; 0: none (ours)")
    lora_alpha: float = Field(default=16.0, gt=0, description="LoRA is multiplied by alpha / rank")


class SampleParams(Policy):
    """How chains start and run. The paper gives no guidance scale; 4 is the released one for Cityscapes."""

    prior: Kind | Literal["x0"] = Field(
        default="joint", description="what chains start from; x0: the real photograph's own latent (Fig. 3)"
    )
    mu: float = Field(
        default=0.8, gt=0, le=1, description="share of the schedule that a prior is noised to; normal starts at 1"
    )
    truncation: Truncation = Field(
        default="fixed", description="fixed: all steps up to mu; release: as many as the released code runs"
    )
    steps: int = Field(
        default=20, ge=1, description="DDIM steps of the whole schedule; 1000 should be divisible (30 gives 31)"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise")
    guidance: float = Field(default=4.0, ge=1, description="guidance scale over prompts; 1 is none")
    fidelity: Literal["paper", "release"] = Field(
        default="paper",
        description="release: class deviations divide by count - 1, void stands for classes never seen, and pixels "
        "lose their decimals",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="of the network; auto is bfloat16 on a GPU, float32 on a CPU"
    )
    compiled: bool = Field(default=False, description="let torch.compile fuse the network")


class Working(NamedTuple):
    """The network as sampling calls it: in its floating-point type, and perhaps compiled."""

    network: ControlledUNet
    call: Eps
    dtype: torch.dtype


class SCPDiff(Method):
    PHOTOGRAPHS_WHEN = {"prior": ("x0",)}
    USES = {
        "autoencoder": Use(("autoencoder_kl",), weights="sample"),
        "base": Use(("latent_diffusion",), weights="fit"),
        "text": Use(("prompts",)),
    }
    LATENTS = "autoencoder"
    MIRRORED = False
    PRIOR_OF_LATENTS = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 64, "hours": 24},
        "prior": {"gpus": 0, "memory_gb": 16, "hours": 4},
        "sample": {"gpus": 1, "memory_gb": 24, "hours": 8},
    }
    FitParams, SampleParams, PriorParams = FitParams, SampleParams, StatisticsParams
    EXAMPLE_FIT = {"hint_channels": [4, 8], "steps": 4, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}
    EXAMPLE_SAMPLE = {"steps": 5}
    EXAMPLE_PRIOR = {"n_images": 16}
    EXAMPLE_USES = {
        "autoencoder": _AUTOENCODER,
        "base": {"method": "latent_diffusion", "fit": _BASE, "uses": {"autoencoder": _AUTOENCODER, "text": _TEXT}},
        "text": _TEXT,
    }

    def build(self) -> None:
        fit, uses = self.fit_params, self.context.uses
        self.first_stage, self.text, base = uses["autoencoder"].network, uses["text"].network, uses["base"].fit_params
        channels, height, width = latent_size(base, self.first_stage, self.text, self.context.size)
        self.shape = (channels, height, width)
        if 2 ** (len(fit.hint_channels) - 1) != self.first_stage.factor:
            what = f"hint_channels {fit.hint_channels} halve a hint {len(fit.hint_channels) - 1} times"
            raise SisError(f"{what}, latents are {self.first_stage.factor} times smaller than images")
        self.schedule = scaled_linear()
        self.palette = channel_palette(self.context.labels, fit.palette)
        self.network = ControlledUNet(unet(base), controlnet(base, fit.hint_channels))
        if fit.lora_rank:
            from sis.nets.latent.lora import LoRAConfig, add_lora

            add_lora(self.network.unet, LoRAConfig(lora_rank=fit.lora_rank, lora_alpha=fit.lora_alpha))
        self._working: Working | None = None
        self._prior: Prior | None = None

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        start_from(self.network, self.context.uses["base"].network)
        unlock(self.network, self.fit_params.locked)
        run.optimise(self.network, self.loss, data, self.fit_params)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The error of the predicted noise on latents that are drawn from the first stage's posterior (Eq. 2)."""
        assert self.context.latents is not None
        fit, noise = self.fit_params, batch.noise
        mirrored = noise.uniform("flip", 0, ()) < 0.5 if fit.flip else None
        mean, std = self.context.latents.of(batch.image_ids, mirrored)
        latent = mean + std * noise.normal("latent", 0, self.shape)
        kept = keeps(noise.uniform("drop", 0, ()), fit.drop_text)[:, None, None]
        context = torch.where(kept, self.text.of("train", len(kept)), self.text.of("negative", len(kept)))
        t, eps = noise.integers("t", 0, (), len(self.schedule)), noise.normal("eps", 0, self.shape)
        return noise_error(
            self.network, self.schedule, latent, t, eps, context, hints_of(batch.labels, self.palette)
        )  # fmt: skip

    def prior(self, data: TrainingData) -> dict[str, Tensor]:
        """Spatial, categorical and joint prior of the training latents (Eqs. 5, 7, 8)."""
        found, facts = self.statistics(data)
        return prior_tensors(Prior.of(found), facts)

    def prior_shard(self, data: TrainingData, index: int, count: int) -> dict[str, Tensor]:
        return statistics_tensors(*self.statistics(data, index, count))

    def merged_prior(self, shards: Sequence[Path]) -> dict[str, Tensor]:
        found, facts = merge_files(shards)
        facts.require(dataset=self.context.dataset.name, labels=self._label_table(), size=self.context.size)
        return prior_tensors(Prior.of(found), facts)

    def statistics(self, data: TrainingData, shard: int = 0, of_shards: int = 1) -> tuple[Statistics, PriorFacts]:
        """One accumulation over the images of a shard, from which all three priors follow."""
        latents, labels = self.context.latents, self.context.labels
        params = self.prior_params
        assert latents is not None and isinstance(params, StatisticsParams)

        def read(positions: Sequence[int]) -> Encoded:
            mean, std = latents.of([data.ids[i] for i in positions])
            return Encoded(mean, std, data.batch(positions).labels)

        draws = drawn(data.ids, params)
        part = draws.shard(shard, of_shards)
        found = accumulate(read, data.ids, part, labels.width, latents=params.latents, seed=params.seed)
        facts = PriorFacts(
            dataset=self.context.dataset.name,
            pairs=latents.manifest.digest,
            labels=self._label_table(),
            classes=labels.width,
            size=list(self.context.size),
            autoencoder=latents.autoencoder,
            params=params,
            images=draws.digest(data.ids),
            count=len(part.images),
            shards=[shard],
            of_shards=of_shards,
        )
        return found, facts

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        with guards.fitting(len(maps.image_ids), self.context.size, lambda count: self._step(maps, count)):
            chain, x = self.start(maps, noise)
            denoiser = guards.finite(self.denoiser(maps.labels), maps.image_ids)
            latent = samplers.ddim(denoiser, chain, x, noise, self.sample_params.eta, clip=False)
            images = self._in_parts(self.first_stage.decode, latent)
            whole = between_rounds.truncated if self.sample_params.fidelity == "release" else to_uint8
            return whole(images, maps.image_ids)

    def chain(self) -> Start:
        """The steps that sampling visits, and the level that chains start from."""
        how = self.sample_params
        grid = self.schedule.leading(how.steps, exact=False)
        mu = 1.0 if how.prior == "normal" else how.mu
        return truncated(grid, mu, len(self.schedule), how.truncation)

    def start(self, maps: MapBatch, noise: Noise) -> tuple[Schedule, Tensor]:
        """The chain and its x_muT `(b, c, h, w)`: normal noise, or the prior of the label maps noised (Eq. 6)."""
        chain, level = self.chain()
        if self.sample_params.prior == "normal":
            return chain, samplers.start_noise(noise, self.shape)
        mean, std = self._photographs(maps) if self.sample_params.prior == "x0" else self._statistics(maps.labels)
        return chain, noised_prior(self.schedule, level, mean, std, noise)

    def denoiser(self, labels: Tensor) -> Denoiser:
        """The guided network under label maps `(b, H, W)`; their hints are embedded here, once for all steps."""
        network, call, dtype = self.working(labels.device)
        hint = network.embed_hint(hints_of(labels, self.palette).to(dtype))
        positive, negative = (self.text.of(purpose, len(labels)) for purpose in ("positive", "negative"))
        return batched_guided(call, positive, negative, hint, self.sample_params.guidance, dtype)

    def working(self, device: torch.device) -> Working:
        """The network in the type of sampling; made at the first use, with the weights of then."""
        if self._working is None:
            auto = "bfloat16" if device.type == "cuda" else "float32"
            dtype = getattr(torch, auto if self.sample_params.dtype == "auto" else self.sample_params.dtype)
            network = in_type(self.network, dtype)
            call = torch.compile(network) if self.sample_params.compiled else network
            self._working = Working(network, call, dtype)
        return self._working

    def _statistics(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the prior of label maps `(b, H, W)`, at every token."""
        how, space = self.sample_params, self.context.labels
        if self._prior is None:
            if self.context.prior is None:
                raise SisError(f"prior {how.prior} needs statistics of the training set", fix="give --prior")
            prior, facts = read_prior(self.context.prior)
            facts.require(dataset=self.context.dataset.name, labels=self._label_table(), size=self.context.size)
            self._prior = prior.to(labels.device)
        policy: Policy = how
        if how.fidelity == "release" and how.unknown is None and space.void is not None:
            policy = how.model_copy(update={"unknown": space.count})
        small = torch.from_numpy(latent_labels(labels, self.shape[1:])).to(labels.device)
        return self._prior.maps(small, how.prior, policy)

    def _photographs(self, maps: MapBatch) -> tuple[Tensor, Tensor]:
        """The latents of the label maps' own photographs, with no deviation."""
        if self.context.pairs is None:
            raise SisError("prior x0 starts from the real photographs, which are not here")
        photographs = np.stack([self.context.pairs.by_id(image_id).image for image_id in maps.image_ids])
        images = network_input(photographs, self.context.device)
        mean = self._in_parts(lambda part: self.first_stage.moments(part)[0], images)
        return mean, torch.zeros_like(mean)

    def _in_parts(self, stage: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """What the first stage makes of a batch, a bounded number of pixels at a time."""
        h, w = self.context.size
        return torch.cat([stage(part) for part in batch.split(max(1, _DECODED // (h * w)))])

    def _step(self, maps: MapBatch, count: int) -> None:
        """One network evaluation for the first images of a batch: what sampling them needs of the memory."""
        x = torch.zeros(count, *self.shape, device=maps.labels.device)
        t = torch.zeros(count, dtype=torch.int64, device=maps.labels.device)
        self.denoiser(maps.labels[:count])(x, t)

    def _label_table(self) -> str:
        """What the channels of label maps mean, as a hash."""
        space = self.context.labels
        return stable_hash([[c.name for c in space.classes], space.void], 16)
