# SPDX-License-Identifier: Apache-2.0
"""KL autoencoder: a first stage; its row shows the real photographs, encoded and decoded (Rombach et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.methods.contract import MapBatch, Method
from sis.nets.latent.first_stage import measure_scale, network_input, reconstruction_error, refuse_sides
from sis.nets.latent.kl import KLConfig, KLFirstStage, divergence

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


class FitParams(KLConfig, Recipe):
    """Network and optimisation of one autoencoder."""

    kl_weight: float = Field(
        default=1e-6, ge=0, description="of a latent's divergence, against the error of a pixel value; both are sums"
    )


class AutoencoderKL(Method):
    ROLE = "control"
    NEEDS = ("pairs",)
    DETERMINISTIC = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 32, "hours": 24},
        "encode": {"gpus": 1, "memory_gb": 16, "hours": 8},
        "sample": {"gpus": 1, "memory_gb": 16, "hours": 2},
    }
    FitParams = FitParams
    EXAMPLE_FIT = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "scale": "auto", "steps": 6,
                   "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}  # fmt: skip

    def build(self) -> None:
        self.network = KLFirstStage(self.fit_params)
        refuse_sides(self.network, self.context.size)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        run.optimise(self.network, self.loss, data, self.fit_params)
        measure_scale(self.network, run.average, data, run.device)

    def loss(self, batch: TrainBatch) -> Tensor:
        """L1 and squared error of the images from drawn latents, plus the latents' divergence from N(0, 1)."""
        h, w = (side // self.network.factor for side in batch.images.shape[2:])
        noise = batch.noise.normal("posterior", 0, (self.network.channels, h, w))
        images, mean, log_variance = self.network(batch.images, noise)
        rate = divergence(mean, log_variance) / batch.images[0].numel()
        return reconstruction_error(batch.images, images) + self.fit_params.kl_weight * rate

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        """The photographs of the label maps as the first stage sees them: from the means of their latents."""
        assert self.context.pairs is not None
        photographs = np.stack([self.context.pairs.by_id(image_id).image for image_id in maps.image_ids])
        mean, _ = self.network.moments(network_input(photographs, self.context.device))
        return to_uint8(self.network.decode(mean), maps.image_ids)
