# SPDX-License-Identifier: Apache-2.0
"""Real photographs: the ceiling of every metric."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.noise import Noise
from sis.methods.contract import MapBatch, Method


class Real(Method):
    ROLE = "control"
    NEEDS = ("pairs",)
    DETERMINISTIC = True
    CLUSTER = {"sample": {"gpus": 0, "memory_gb": 4, "hours": 4}}

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        assert self.context.pairs is not None
        images = np.stack([self.context.pairs.by_id(image_id).image for image_id in maps.image_ids])
        return torch.from_numpy(images).permute(0, 3, 1, 2)
