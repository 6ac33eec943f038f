# SPDX-License-Identifier: Apache-2.0
"""Blurred real: real photographs without fine texture; a scale for the Fréchet column."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from pydantic import Field
from torch import Tensor

from sis.config.base import StrictModel
from sis.diffusion.noise import Noise
from sis.methods.contract import MapBatch, Method


class SampleParams(StrictModel):
    """Strength of the blur."""

    radius: float = Field(default=0.03, gt=0, description="standard deviation of the blur, in image heights")


class BlurredReal(Method):
    ROLE = "control"
    NEEDS = ("pairs",)
    DETERMINISTIC = True
    CLUSTER = {"sample": {"gpus": 0, "memory_gb": 4, "hours": 4}}
    SampleParams = SampleParams

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        assert self.context.pairs is not None
        blur = ImageFilter.GaussianBlur(self.sample_params.radius * self.context.size[0])
        real = [self.context.pairs.by_id(image_id).image for image_id in maps.image_ids]
        blurred = np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in real])
        return torch.from_numpy(blurred).permute(0, 3, 1, 2)
