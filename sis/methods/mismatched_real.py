# SPDX-License-Identifier: Apache-2.0
"""Mismatched real: real photographs of other label maps; perfect realism without obedience."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.noise import Noise
from sis.methods.contract import MapBatch, Method


class MismatchedReal(Method):
    ROLE = "control"
    NEEDS = ("pairs",)
    DETERMINISTIC = True
    CLUSTER = {"sample": {"gpus": 0, "memory_gb": 4, "hours": 4}}

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        pairs = self.context.pairs
        assert pairs is not None
        # Half a turn through the sorted ids: every photograph is used once and none for its own map.
        position = {image_id: i for i, image_id in enumerate(pairs.ids)}
        others = [(position[i] + (len(pairs) + 1) // 2) % len(pairs) for i in maps.image_ids]
        return torch.from_numpy(np.stack([pairs.get(o).image for o in others])).permute(0, 3, 1, 2)
