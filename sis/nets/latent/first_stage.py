# SPDX-License-Identifier: Apache-2.0
"""First stages: what every autoencoder of images offers to the methods that work on its latents."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sis.config.base import StrictModel
from sis.data.training_data import TrainingData
from sis.errors import SisError

#: Where a scale that was measured on the training set is kept in the state dict.
MEASURED = "measured_scale"

#: Channels of each level of an autoencoder, finest first; each level is half as large as the one before.
Channels = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]

#: What latents are multiplied by; auto: one over their standard deviation on the training set, measured after training.
Scale = Annotated[float, Field(gt=0)] | Literal["auto"]


class AutoencoderConfig(StrictModel):
    """What all autoencoders' shapes have in common; the rest has defaults of its own in each."""

    block_out_channels: Channels
    latent_channels: int
    scale: Scale
    layers_per_block: int = Field(default=2, ge=1, description="residual blocks a level (the decoder has one more)")
    attention: list[int] = Field(default=[], description="down-sampling factors with self-attention, beside the middle")
    middle_attention: bool = Field(default=True, description="self-attention beside the latent, in both halves")
    norm_groups: int = Field(default=32, ge=1, description="groups of every group norm; narrow networks want fewer")
    patch: int = Field(default=1, ge=1, description="side of the pixel patches that are channels of the first level")


class FirstStage(nn.Module):
    """An autoencoder between images and scaled latents; subclasses say how it encodes and decodes.

    factor: sides of an image over sides of its latent. channels: of the latent. A scale that is measured belongs to
    the weights (buffer `measured_scale`, 1 until then); one that is given does not.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.factor = _factors(config)[-1]
        self.channels, self.patch = config.latent_channels, config.patch
        self._given = None if config.scale == "auto" else config.scale
        if self._given is None:
            self.register_buffer(MEASURED, torch.ones(()))

    @property
    def scale(self) -> float:
        """What latents are multiplied by."""
        return float(getattr(self, MEASURED)) if self._given is None else self._given

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation `(b, c, h/f, w/f)` of the latents of images in [-1, 1], before they are scaled."""
        raise NotImplementedError

    def decode_unscaled(self, latents: Tensor) -> Tensor:
        """The images of latents as `encode` gives them."""
        raise NotImplementedError

    def folded(self, images: Tensor) -> Tensor:
        """Pixels `(b, 3, h, w)` as channels of patches `(b, 3 p^2, h / p, w / p)`."""
        return F.pixel_unshuffle(images, self.patch)

    def unfolded(self, patches: Tensor) -> Tensor:
        """And back."""
        return F.pixel_shuffle(patches, self.patch)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(b, c, h/f, w/f)` of the scaled latents of images `(b, 3, h, w)` in [-1, 1].

        Raises SisError for images whose sides the factor does not divide.
        """
        refuse_sides(self, (images.shape[-2], images.shape[-1]))
        mean, deviation = self.encode(images)
        return mean * self.scale, deviation * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(b, 3, h, w)` about [-1, 1], not clipped, from scaled latents `(b, c, h/f, w/f)`."""
        return self.decode_unscaled(latents / self.scale)


def refuse_sides(first_stage: FirstStage, size: tuple[int, int]) -> None:
    """Raise SisError for images of a size (height, width) that a first stage cannot encode and decode again."""
    h, w = size
    if h % first_stage.factor or w % first_stage.factor:
        what = f"an autoencoder of factor {first_stage.factor} cannot encode images of {w}x{h}"
        raise SisError(what, fix=f"use a size divisible by {first_stage.factor}, or fewer levels")


def _factors(config: AutoencoderConfig) -> list[int]:
    """By how much each level is smaller than the image."""
    return [config.patch * 2**level for level in range(len(config.block_out_channels))]


def module_options(config: AutoencoderConfig) -> dict[str, Any]:
    """What diffusers' autoencoders call the parts of a shape. Raises SisError for a shape that cannot be."""
    channels = config.block_out_channels
    factors = _factors(config)
    if set(config.attention) - set(factors):
        raise SisError(f"attention at {config.attention}, the levels have the factors {factors}")
    if any(c < 1 or c % config.norm_groups for c in channels):
        raise SisError(f"{config.norm_groups} groups do not divide the channels {channels}", fix="change norm_groups")
    attends = [factor in config.attention for factor in factors]
    return {
        "in_channels": 3 * config.patch**2,
        "out_channels": 3 * config.patch**2,
        "block_out_channels": tuple(channels),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.middle_attention,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attends[::-1]),
    }


def reconstruction_error(images: Tensor, reconstructed: Tensor) -> Tensor:
    """L1 plus squared error of each image `(b,)`, means over its values."""
    difference = (reconstructed - images).flatten(1)
    return difference.abs().mean(1) + (difference**2).mean(1)


def network_input(images: NDArray[np.uint8], device: str) -> Tensor:
    """Photographs `(b, h, w, 3)` as float32 `(b, 3, h, w)` in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def measure_scale(first_stage: FirstStage, average: dict[str, Tensor], data: TrainingData, device: str) -> None:
    """Measure the scale of the network's weights and of their average on a training set, if it is not given.

    Both get it in their `measured_scale`. Raises SisError where all latents are alike.
    """
    if MEASURED not in average:
        return
    own = {name: value.clone() for name, value in first_stage.state_dict().items()}
    for weights in (average, own):
        first_stage.load_state_dict(weights)
        weights[MEASURED] = torch.full_like(weights[MEASURED], unit_scale(first_stage, data, device))
    first_stage.load_state_dict(own)


@torch.inference_mode()
def unit_scale(first_stage: FirstStage, data: TrainingData, device: str) -> float:
    """One over the standard deviation of all unscaled latents of a split: with it, they have unit variance.

    The variance is that of drawn latents: of the means, plus the mean variance around them; sums are float64.
    Rombach et al. 2022 (Appendix G) take it from one batch. Raises SisError where all latents are alike.
    """
    was_training, count, total = first_stage.training, 0, torch.zeros(2, dtype=torch.float64)
    first_stage.eval()
    for batch in data.in_order():
        mean, deviation = (value.double() for value in first_stage.encode(network_input(batch.images, device)))
        total += torch.stack([mean.sum(), (mean**2 + deviation**2).sum()]).cpu()
        count += mean.numel()
    first_stage.train(was_training)
    first, second = (total / count).tolist()
    variance = second - first**2
    if not 0 < variance < math.inf:
        raise SisError(f"the latents of the training set have variance {variance:.3g}", fix="train the autoencoder")
    return variance**-0.5
