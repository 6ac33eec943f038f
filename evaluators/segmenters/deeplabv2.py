# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2-ResNet101 with MSC: the judge of COCO-Stuff in the papers (kazuto1011/deeplab-pytorch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from evaluators.nets.deeplabv2 import MSC, DeepLabV2, Interpolation
from evaluators.network import Source, classes_at, fill_from
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate

TITLE = "DeepLabV2-ResNet101 with MSC (COCO-Stuff)"
VERSION = 1

Positive = Annotated[int, Field(gt=0)]
Scale = Annotated[float, Field(gt=0, le=4)]


class Options(StrictModel):
    """What a card may set; the defaults are the published network's."""

    blocks: list[Positive] = Field([3, 4, 23, 3], min_length=4, max_length=4, description="blocks of each stage")
    classes: int = Field(182, gt=0, le=256, description="outputs; COCO-Stuff has ids 0..181")
    rates: list[Positive] = Field([6, 12, 18, 24], min_length=1, description="dilations of the pyramid")
    scales: list[Scale] = Field([0.5, 0.75], description="of the copies beside the picture itself")
    interpolation: Interpolation = Field("old", description="sampling of the copies, see nets.deeplabv2")
    mean: list[float] = Field([104.008, 116.669, 122.675], min_length=3, max_length=3, description="of B, G, R")


class DeepLabV2Segmenter:
    """Feeds pictures at the size that they have: B, G, R in 0..255 less the mean, no division.

    One by one: at full size the logits of 182 classes weigh 0.7 kB a pixel, and no answer depends on the batch.
    """

    def __init__(self, network: MSC, options: Options, device: str = "cpu") -> None:
        self.network, self.classes, self._device = network, options.classes, device
        self._mean = np.array(options.mean)

    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB `(b, h, w, 3)` -> what the network is fed, float `(b, 3, h, w)`."""
        pixels = (images[..., ::-1] - self._mean).astype(np.float32)  # rounded once, as the authors' loader does
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def predict(self, images: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Class indices `(b, *size)`: logits resized bilinearly to `size` (None = the pictures'), then argmax."""
        found = np.empty((len(images), *(size or images.shape[1:3])), np.uint8)
        with torch.inference_mode():
            for image, classes in zip(images, found, strict=True):
                classes[:] = classes_at(self.network(self.prepare(image[None]).to(self._device)), classes.shape)
        return found


def load(options: Mapping[str, Any], source: Source) -> DeepLabV2Segmenter:
    """Build the judge. Raises SisError for unknown options and for weights that do not fit."""
    chosen = validate(Options, dict(options), "options of segmenter deeplabv2")
    network = MSC(DeepLabV2(chosen.blocks, chosen.classes, chosen.rates), chosen.scales, chosen.interpolation)
    fill_from(network, source)
    return DeepLabV2Segmenter(network, chosen, source.device)
