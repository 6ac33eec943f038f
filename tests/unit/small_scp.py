# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff on networks of a few hundred weights: the models of its roles, six encoded pictures that no disk holds."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sis.config.files import dataset_card, label_space
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import TrainingData
from sis.methods.contract import Context
from sis.methods.scp_diff import FitParams, SampleParams, SCPDiff
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import SDConfig, unet
from sis.nets.latent.text import PromptEmbeddings
from sis.priors.params import StatisticsParams

SIZE, COUNT = (16, 16), 6
IDS = [f"train-{i}" for i in range(COUNT)]
SPACE = label_space("scenes")
BASE = SDConfig(in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=1, attention=[2],
                heads=[1, 2], cross_attention_dim=8, norm_groups=4)  # fmt: skip
KL = KLConfig(block_out_channels=[8, 8], latent_channels=3, layers_per_block=1, norm_groups=4, scale=0.5)
FIT = FitParams(hint_channels=[4, 8], steps=3, batch_size=4, learning_rate=0.01)
SHAPE = (3, 8, 8)


class Records:
    """Random photographs; image i is half class 0 and half class i."""

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        batch.images[position] = photograph(index)
        batch.labels[position] = 0
        batch.labels[position, 8:] = index


def photograph(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


class Latents:
    """An encoded split that no disk holds; a mirrored picture's latent is the mirrored one."""

    ids, shape, autoencoder = IDS, SHAPE, "autoencoder_kl-0"
    manifest = SimpleNamespace(digest="0" * 64)

    def of(self, image_ids: Sequence[str], mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        numbers = [IDS.index(i) for i in image_ids]
        mean = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(n)) for n in numbers])
        if mirrored is not None:
            mean = torch.where(mirrored[:, None, None, None], mean.flip(-1), mean)
        return mean, torch.full_like(mean, 0.25)


def parts(base: SDConfig = BASE, width: int = 8) -> dict[str, Any]:
    """Tiny models for the roles, always with the same weights."""
    torch.manual_seed(3)
    text = PromptEmbeddings(5, width)
    text.fill({"train": torch.randn(5, width), "positive": torch.randn(5, width), "negative": torch.randn(5, width)})
    first_stage = KLFirstStage(KL).eval().requires_grad_(False)
    network = unet(base).eval().requires_grad_(False)
    found = {"autoencoder": first_stage, "text": text, "base": network}
    return {role: SimpleNamespace(network=part, fit_params=base) for role, part in found.items()}


def data() -> TrainingData:
    return TrainingData(IDS, SIZE, SPACE, Records(), instances=False, augmented=False)


def method(fit: FitParams = FIT, sample: dict[str, Any] | None = None, **of_context: Any) -> SCPDiff:
    options: dict[str, Any] = {"uses": parts(), "latents": Latents()} | of_context
    context = Context(dataset_card("scenes_tiny"), SPACE, SIZE, "cpu", **options)
    torch.manual_seed(4)
    made = SCPDiff(context, fit, SampleParams(**{"steps": 5, **(sample or {})}), StatisticsParams(n_images=COUNT))
    made.network.eval()
    return made


def awake(sample: dict[str, Any] | None = None, **of_context: Any) -> SCPDiff:
    """A method whose answers depend on everything: no weight is zero any more."""
    made = method(sample=sample, **of_context)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made
