# SPDX-License-Identifier: Apache-2.0
"""Judges Cityscapes with a dilated residual network as its authors test it, at one scale or several (fyu/drn).

Each class's log-probabilities are resized as a grey picture, antialiased when they shrink, and summed over the scales;
no flip. Images are judged one by one, so that no answer depends on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from evaluators.nets.drn import UNUSED, DrnSegmenter
from evaluators.network import Source, fill_from
from evaluators.resampling import Size, pillow_planes
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate
from sis.data.resize import bicubic
from sis.errors import SisError

TITLE = "DRN, the Cityscapes segmenter of Yu, Koltun and Funkhouser (2017)"
VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]


class DrnOptions(StrictModel):
    """What a card may say of the network and of how images are fed to it."""

    arch: Literal[
        "drn_c_26", "drn_c_42", "drn_c_58", "drn_d_22", "drn_d_24", "drn_d_38",
        "drn_d_40", "drn_d_54", "drn_d_56", "drn_d_105", "drn_d_107",
    ] = Field(default="drn_d_105", description="network of the paper")  # fmt: skip
    classes: Annotated[int, Field(ge=1, le=256)] = Field(default=19, description="classes that the network tells apart")
    scales: Annotated[list[Annotated[float, Field(gt=0, le=8)]], Field(min_length=1)] | None = Field(
        default=None, description="factors of the image's sides, in the order of summation; null = the image as it is"
    )
    mean: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(
        default=[0.290101, 0.328081, 0.286964], description="mean of red, green and blue (Cityscapes train)"
    )
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = Field(
        default=[0.182954, 0.186566, 0.184475], description="standard deviation of red, green and blue"
    )
    use_torch_up: bool = Field(default=False, description="upsample logits by aligned corners; has no `up.weight`")


class Drn:
    """The network with its authors' test procedure."""

    def __init__(self, network: DrnSegmenter, options: DrnOptions, device: str = "cpu") -> None:
        self.network = network.eval().to(device)
        self.options = options
        self.classes = options.classes
        self._device = device
        self._mean = torch.tensor(options.mean)[:, None, None]
        self._std = torch.tensor(options.std)[:, None, None]

    def predict(self, images: NDArray[np.uint8], size: Size | None = None) -> NDArray[np.uint8]:
        """Answer uint8 RGB `(b, h, w, 3)` with class indices `(b, *size)`; size None = the images' own `(h, w)`.

        Another size than the images' is reached by resizing the log-probabilities, one scale or the sum of several.
        """
        answers = [self.log_probabilities(image, size).argmax(0).astype(np.uint8) for image in images]
        return np.stack(answers) if answers else np.empty((0, *(size or images.shape[1:3])), np.uint8)

    def log_probabilities(self, image: NDArray[np.uint8], size: Size | None = None) -> NDArray[np.float32]:
        """Log-probabilities `(classes, *size)` of `(h, w, 3)`, summed over the scales; size None = `(h, w)`."""
        h, w = image.shape[:2]
        size = size or (h, w)
        if self.options.scales is None:
            return pillow_planes(self.raw(image), size)
        total = np.zeros((self.classes, h, w), np.float32)
        for scale in self.options.scales:
            total += pillow_planes(self.raw(image, scale), (h, w))
        return pillow_planes(total, size)

    def raw(self, image: NDArray[np.uint8], scale: float = 1.0) -> NDArray[np.float32]:
        """Log-probabilities of `(h, w, 3)` at one scale as the network gives them: sides rounded up to multiples of 8.

        The image's sides become int(side * scale) (Pillow's bicubic filter). Raises SisError when nothing is left.
        """
        h, w = image.shape[:2]
        scaled = int(h * scale), int(w * scale)
        if min(scaled) < 1:
            raise SisError(f"an image of {h}x{w} vanishes at scale {scale}", fix="judge larger images")
        if scaled != (h, w):
            image = bicubic(image, scaled)
        with torch.inference_mode():
            return self.network(self.normalised(image).to(self._device))[0].cpu().numpy()

    def normalised(self, image: NDArray[np.uint8]) -> Tensor:
        """The network's input `(1, 3, h, w)` for `(h, w, 3)`."""
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
        return x.sub_(self._mean).div_(self._std)[None]


def load(options: Mapping[str, Any], source: Source) -> Drn:
    """Build the judge from its options and the authors' checkpoint, or without files as a seeded stand-in.

    Raises SisError for unknown or senseless options and for a file that does not fit the network.
    """
    chosen = validate(DrnOptions, dict(options), "options of drn")
    network = DrnSegmenter(chosen.arch, chosen.classes, chosen.use_torch_up)
    fill_from(network, source, UNUSED)
    if not source.files:
        network.set_bilinear()
    return Drn(network, chosen, source.device)
