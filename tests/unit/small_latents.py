# SPDX-License-Identifier: Apache-2.0
"""The latent family without files: a tiny autoencoder, base model and prompts, and latents that no disk holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sis.config.files import dataset_card, label_space
from sis.diffusion.noise import Noise
from sis.methods.autoencoder_kl import AutoencoderKL
from sis.methods.contract import Context, MapBatch, Method
from sis.methods.latent_diffusion import LatentDiffusion
from sis.methods.prompts import Prompts
from sis.methods.sdm_lora import SDMLoRA
from sis.training.loop import TrainBatch

SIZE = (32, 32)
WIDTH = 8
AUTOENCODER = {"block_out_channels": [8, 8, 8], "layers_per_block": 1, "norm_groups": 4, "scale": 1.0}
BASE = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention": [2], "heads": [1, 2],
        "cross_attention_dim": WIDTH, "norm_groups": 4}  # fmt: skip


class Latents:
    """Latents that follow from the image's number; the mirrored ones are mirrored. `asked` keeps what was tossed."""

    def __init__(self, deviation: float = 0.0) -> None:
        self.shape, self.deviation, self.asked = (4, 8, 8), deviation, list[Tensor | None]()

    def of(self, image_ids: Sequence[str], mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(mirrored)
        mean = Noise(7, tuple((i, 0) for i in image_ids)).normal("image", 0, self.shape)
        if mirrored is not None:
            mean = torch.where(mirrored[:, None, None, None], mean.flip(-1), mean)
        return mean, torch.full_like(mean, self.deviation)


def context(uses: Mapping[str, Method] | None = None, latents: Any = None, **changes: Any) -> Context:
    """A place on scenes of 32x32; `changes` are of the dataset's card."""
    card = dataset_card("scenes_tiny").model_copy(update=changes)
    return Context(card, label_space(card.labels), SIZE, "cpu", uses=uses or {}, latents=latents)


def of(kind: type[Method], place: Context, fit: dict[str, Any], sample: dict[str, Any] | None = None) -> Any:
    """A method with validated parameters, its first weights always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind(place, kind.FitParams.model_validate(fit), kind.SampleParams.model_validate(sample or {}))


def parts(text_width: int = WIDTH) -> dict[str, Method]:
    """A frozen autoencoder of factor 4, and prompts that all differ."""
    autoencoder = of(AutoencoderKL, context(), AUTOENCODER)
    text = of(Prompts, context(), {"stand_in": True, "tokens": 3, "width": text_width})
    drawn = Noise(1, (("text", 0),)).normal("text", 0, (3, 3, text_width))[0]
    text.network.fill(dict(zip(("train", "positive", "negative"), drawn, strict=True)))
    for method in (autoencoder, text):
        method.network.eval().requires_grad_(False)
    return {"autoencoder": autoencoder, "text": text}


def base(sample: dict[str, Any] | None = None, latents: Any = None, **fit: Any) -> LatentDiffusion:
    """A base model, trainable."""
    return of(LatentDiffusion, context(parts(), latents), BASE | fit, sample)


def sdm_lora(
    sample: dict[str, Any] | None = None, latents: Any = None, place: dict[str, Any] | None = None, **fit: Any
) -> SDMLoRA:
    """SDM-LoRA on a frozen base with random weights, none of them zero."""
    frozen = base()
    stirred(frozen.network)
    frozen.network.eval().requires_grad_(False)
    fit = {"lora_rank": 2, "spade_hidden": 6} | fit
    return of(SDMLoRA, context({**parts(), "base": frozen}, latents, **(place or {})), fit, sample)


def stirred(network: torch.nn.Module) -> None:
    """Give every parameter that is zero or a constant some random numbers."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.unique().numel() == 1:
                weight += 0.2 * torch.randn(weight.shape, generator=generator)


def noise(batch: int, seed: int = 0) -> Noise:
    return Noise(seed, tuple((f"image-{i}", 0) for i in range(batch)))


def labels(batch: int, seed: int = 0) -> Tensor:
    """Maps of single pixels, so that every pixel that is read by mistake shows."""
    return noise(batch, seed).integers("labels", 0, SIZE, label_space("scenes").width)


def train_batch(batch: int, seed: int = 0, stage: int = 1, instances: Tensor | None = None) -> TrainBatch:
    keyed = noise(batch, seed)
    ids = tuple(image_id for image_id, _ in keyed.keys)
    return TrainBatch(ids, torch.zeros(batch, 3, *SIZE), labels(batch), instances, keyed, stage)


def map_batch(batch: int, seed: int = 0) -> MapBatch:
    ids = tuple(image_id for image_id, _ in noise(batch).keys)
    return MapBatch(ids, (0,) * batch, labels(batch, seed), torch.zeros(batch, *SIZE, dtype=torch.int64))
