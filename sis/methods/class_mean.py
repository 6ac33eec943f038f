# SPDX-License-Identifier: Apache-2.0
"""Class mean: every pixel in the mean colour that its class has in the training photographs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sis.data.training_data import TrainingData
from sis.diffusion.noise import Noise
from sis.methods.contract import MapBatch, Method
from sis.priors.moments import Moments


class ClassMean(Method):
    ROLE = "control"
    DETERMINISTIC = True
    CLUSTER = {"prior": {"gpus": 0, "memory_gb": 8, "hours": 4}, "sample": {"gpus": 0, "memory_gb": 4, "hours": 4}}

    def prior(self, data: TrainingData) -> dict[str, Tensor]:
        moments = Moments.empty(self.context.labels.width, 3)
        for batch in data.in_order():
            pixels = batch.images.reshape(-1, 3).astype(np.float64)
            moments = moments.merge(Moments.of(pixels, batch.labels.reshape(-1), self.context.labels.width))
        return {name: torch.from_numpy(value) for name, value in moments.arrays().items()}

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        assert self.context.prior is not None
        colours = self.context.prior["mean"].round().clamp(0, 255).to(torch.uint8)
        return colours[maps.labels.cpu()].permute(0, 3, 1, 2)
