# SPDX-License-Identifier: Apache-2.0
"""Decoders of the ADE20K judges: UPerNet (Xiao et al. 2018), pyramid pooling (Zhao et al. 2017), one convolution.

Names of the state dict are those of CSAILVision's decoder checkpoints. Branches that only serve training
("deepsup") have weights there and none here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Channels of UPerNet's pyramid where a decoder's name says nothing else.
FPN_DIMS = {"upernet": 512, "upernet_lite": 256}
DECODERS = ("upernet", "upernet_lite", "ppm", "ppm_deepsup", "c1", "c1_deepsup")
#: Weights of the branch that supervises the map before the coarsest in training.
TRAINING_ONLY = (
    *(f"cbr_deepsup.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    *("cbr_deepsup.0.weight", "conv_last_deepsup.weight", "conv_last_deepsup.bias"),
)
#: Channels of each level of pyramid pooling.
_POOLED = 512


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid down to the finest, and their fusion."""

    def __init__(self, inputs: Sequence[int], classes: int, fpn_dim: int, pool_scales: Sequence[int]) -> None:
        """`inputs`: channels of the encoder's maps, finest first; `pool_scales`: sides of the pooled grids."""
        super().__init__()
        self.pool_scales = tuple(pool_scales)
        self.ppm_conv = nn.ModuleList(_conv_bn_relu(inputs[-1], _POOLED, 1) for _ in pool_scales)
        self.ppm_last_conv = _conv_bn_relu(inputs[-1] + len(pool_scales) * _POOLED, fpn_dim, 3)
        self.fpn_in = nn.ModuleList(_conv_bn_relu(channels, fpn_dim, 1) for channels in inputs[:-1])
        self.fpn_out = nn.ModuleList(nn.Sequential(_conv_bn_relu(fpn_dim, fpn_dim, 3)) for _ in inputs[:-1])
        self.conv_last = nn.Sequential(_conv_bn_relu(len(inputs) * fpn_dim, fpn_dim, 3), nn.Conv2d(fpn_dim, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's maps, finest first -> class scores at the finest map's size."""
        coarsest = maps[-1]
        levels = [coarsest]
        for scale, narrow in zip(self.pool_scales, self.ppm_conv, strict=True):
            # Enlarged before the convolution: the other order is another function, because of the ReLU.
            levels.append(narrow(_resized(F.adaptive_avg_pool2d(coarsest, scale), coarsest)))
        x = self.ppm_last_conv(torch.cat(levels, 1))
        pyramid = [x]
        for fine, enter, leave in reversed(list(zip(maps[:-1], self.fpn_in, self.fpn_out, strict=True))):
            lateral = enter(fine)
            x = lateral + _resized(x, lateral)
            pyramid.insert(0, leave(x))
        return self.conv_last(torch.cat([pyramid[0], *(_resized(p, pyramid[0]) for p in pyramid[1:])], 1))


class PyramidPooling(nn.Module):
    """Pyramid pooling on the coarsest map alone."""

    def __init__(self, inputs: Sequence[int], classes: int, pool_scales: Sequence[int]) -> None:
        """As UPerNet."""
        super().__init__()
        self.ppm = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), *_conv_bn_relu(inputs[-1], _POOLED, 1)) for scale in pool_scales
        )
        self.conv_last = nn.Sequential(
            *_conv_bn_relu(inputs[-1] + len(pool_scales) * _POOLED, _POOLED, 3),
            nn.Dropout2d(0.1),
            nn.Conv2d(_POOLED, classes, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's maps -> class scores at the coarsest map's size."""
        coarsest = maps[-1]
        return self.conv_last(torch.cat([coarsest, *(_resized(pool(coarsest), coarsest) for pool in self.ppm)], 1))


class OneConvolution(nn.Module):
    """One 3x3 convolution and a linear classifier on the coarsest map."""

    def __init__(self, inputs: Sequence[int], classes: int) -> None:
        super().__init__()
        self.cbr = _conv_bn_relu(inputs[-1], inputs[-1] // 4, 3)
        self.conv_last = nn.Conv2d(inputs[-1] // 4, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's maps -> class scores at the coarsest map's size."""
        return self.conv_last(self.cbr(maps[-1]))


def decoder(
    name: str,
    inputs: Sequence[int],
    classes: int,
    fpn_dim: int | None,
    pool_scales: Sequence[int],
) -> nn.Module:
    """Build one of DECODERS for an encoder with `inputs` channels; fpn_dim None = as the name says."""
    if name in FPN_DIMS:
        return UPerNet(inputs, classes, fpn_dim or FPN_DIMS[name], pool_scales)
    if name in ("ppm", "ppm_deepsup"):
        return PyramidPooling(inputs, classes, pool_scales)
    if name in ("c1", "c1_deepsup"):
        return OneConvolution(inputs, classes)
    raise ValueError(f"no decoder {name!r}")


def _conv_bn_relu(inputs: int, outputs: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
