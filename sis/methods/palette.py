# SPDX-License-Identifier: Apache-2.0
"""Palette: the label map in its legend's colours; perfect obedience without realism."""

from __future__ import annotations

import torch
from torch import Tensor

from sis.diffusion.noise import Noise
from sis.methods.contract import MapBatch, Method


class Palette(Method):
    ROLE = "control"
    DETERMINISTIC = True
    CLUSTER = {"sample": {"gpus": 0, "memory_gb": 4, "hours": 4}}

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        space = self.context.labels
        void = [] if space.void is None else [space.void]
        colours = torch.from_numpy(space.palette()[[*range(space.count), *void]])
        return colours[maps.labels.cpu()].permute(0, 3, 1, 2)
