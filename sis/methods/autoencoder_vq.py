# SPDX-License-Identifier: Apache-2.0
"""VQ autoencoder: a first stage; its row shows the real photographs, encoded, quantised and decoded (IIDM's kind)."""

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
from sis.nets.latent.vq import VQConfig, VQFirstStage, codebook_error

if TYPE_CHECKING:
    from sis.training.loop import TrainBatch, TrainingRun


class FitParams(VQConfig, Recipe):
    """Network and optimisation of one autoencoder."""

    commitment: float = Field(default=0.25, ge=0, description="how strongly latents are drawn to their codes")


class AutoencoderVQ(Method):
    ROLE = "control"
    NEEDS = ("pairs",)
    DETERMINISTIC = True
    CLUSTER = {
        "train": {"gpus": 1, "cpus": 8, "memory_gb": 32, "hours": 24},
        "encode": {"gpus": 1, "memory_gb": 16, "hours": 8},
        "sample": {"gpus": 1, "memory_gb": 16, "hours": 2},
    }
    FitParams = FitParams
    EXAMPLE_FIT = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_groups": 4, "codes": 32, "steps": 6,
                   "codebook_range": 1.0, "batch_size": 4, "learning_rate": 0.001, "ema": 0.5}  # fmt: skip

    def build(self) -> None:
        self.network = VQFirstStage(self.fit_params)
        refuse_sides(self.network, self.context.size)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        run.optimise(self.network, self.loss, data, self.fit_params)
        measure_scale(self.network, run.average, data, run.device)

    def loss(self, batch: TrainBatch) -> Tensor:
        """L1 and squared error of the images from quantised latents, plus the distance between latents and codes."""
        images, latents, codes = self.network(batch.images)
        distance = codebook_error(latents, codes, self.fit_params.commitment)
        return reconstruction_error(batch.images, images) + distance

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        """The photographs of the label maps as the first stage sees them."""
        assert self.context.pairs is not None
        photographs = np.stack([self.context.pairs.by_id(image_id).image for image_id in maps.image_ids])
        latents, _ = self.network.moments(network_input(photographs, self.context.device))
        return to_uint8(self.network.decode(latents), maps.image_ids)
