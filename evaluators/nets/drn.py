# SPDX-License-Identifier: Apache-2.0
"""Dilated residual networks of the families C and D as segmenters of output stride 8 (Yu, Koltun, Funkhouser 2017).

Names of the state dict are those of the authors' segmentation checkpoints (fyu/drn): `base.<level>...`, `seg`, `up`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluators.nets.residual import BasicBlock, Bottleneck

#: Channels of the eight levels, before a bottleneck's widening.
CHANNELS = (16, 32, 64, 128, 256, 512, 512, 512)
#: Strides and dilations of the eight levels; levels 7 and 8 undo the gridding that dilation leaves (section 4).
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)
#: Rows whose log-probabilities are normalised at once: a map of many megapixels is then never held twice.
_ROWS = 64


#: What the authors' file of drn_c_58 may hold of a projection beside convolutions that have no skip.
UNUSED = tuple(
    f"base.9.0.downsample.{name}"
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
)


@dataclass(frozen=True)
class Architecture:
    """One network of the paper: family, kind of residual block in levels 3 to 6, blocks of each level."""

    family: str
    bottleneck: bool
    blocks: tuple[int, ...]


ARCHITECTURES = {
    "drn_c_26": Architecture("C", False, (1, 1, 2, 2, 2, 2, 1, 1)),
    "drn_c_42": Architecture("C", False, (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_c_58": Architecture("C", True, (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_22": Architecture("D", False, (1, 1, 2, 2, 2, 2, 1, 1)),
    "drn_d_24": Architecture("D", False, (1, 1, 2, 2, 2, 2, 2, 2)),
    "drn_d_38": Architecture("D", False, (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_40": Architecture("D", False, (1, 1, 3, 4, 6, 3, 2, 2)),
    "drn_d_54": Architecture("D", True, (1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_56": Architecture("D", True, (1, 1, 3, 4, 6, 3, 2, 2)),
    "drn_d_105": Architecture("D", True, (1, 1, 3, 4, 23, 3, 1, 1)),
    "drn_d_107": Architecture("D", True, (1, 1, 3, 4, 23, 3, 2, 2)),
}


class DrnSegmenter(nn.Module):
    """A dilated residual network with a linear classifier and a fixed upsampling by 8."""

    def __init__(self, arch: str, classes: int, use_torch_up: bool = False) -> None:
        """`arch`: a key of ARCHITECTURES; `use_torch_up`: interpolate by corners instead of the bilinear kernel."""
        super().__init__()
        self.base = _base(ARCHITECTURES[arch])
        self.seg = nn.Conv2d(CHANNELS[-1], classes, 1)
        self.up: nn.ConvTranspose2d | nn.Upsample
        if use_torch_up:
            self.up = nn.Upsample(scale_factor=8, mode="bilinear", align_corners=True)
        else:
            self.up = nn.ConvTranspose2d(classes, classes, 16, 8, 4, groups=classes, bias=False)
        self.set_bilinear()

    def set_bilinear(self) -> None:
        """Give the upsampling the kernel that the authors' training keeps frozen."""
        if isinstance(self.up, nn.ConvTranspose2d):
            with torch.no_grad():
                self.up.weight.copy_(bilinear_kernel(self.up.kernel_size[0]).expand_as(self.up.weight))

    def logits(self, x: Tensor) -> Tensor:
        """`x` normalised `(b, 3, h, w)` -> class scores `(b, classes, ceil(h / 8), ceil(w / 8))`."""
        return self.seg(self.base(x))

    def forward(self, x: Tensor) -> Tensor:
        """`x` normalised `(b, 3, h, w)` -> log-probabilities `(b, classes, 8 ceil(h / 8), 8 ceil(w / 8))`."""
        scores = self.up(self.logits(x))
        for rows in scores.split(_ROWS, 2):
            rows.copy_(F.log_softmax(rows, 1))
        return scores


def bilinear_kernel(side: int) -> Tensor:
    """The kernel `(side, side)` with which a transposed convolution of stride side / 2 interpolates (side even)."""
    f = side // 2
    centre = (2 * f - 1) / (2 * f)
    taps = 1 - (torch.arange(side, dtype=torch.float64) / f - centre).abs()
    return torch.outer(taps, taps).float()


def _base(arch: Architecture) -> nn.Sequential:
    """The trunk; family C has its stem's three layers bare and residual blocks in every level."""
    stem = (nn.Conv2d(3, CHANNELS[0], 7, 1, 3, bias=False), nn.BatchNorm2d(CHANNELS[0]), nn.ReLU(inplace=True))
    modules: list[nn.Module] = list(stem) if arch.family == "C" else [nn.Sequential(*stem)]
    inputs = CHANNELS[0]
    for level, (width, count) in enumerate(zip(CHANNELS, arch.blocks, strict=True), start=1):
        stride, dilation = STRIDES[level - 1], DILATIONS[level - 1]
        outer = level not in (3, 4, 5, 6)
        if outer and arch.family == "D":
            modules.append(_convolutions(inputs, width, count, stride, dilation))
        elif arch.bottleneck and not outer:
            modules.append(_bottlenecks(inputs, width, count, stride, dilation))
            width *= 4
        else:
            modules.append(_basic_blocks(inputs, width, count, stride, dilation, residual=level < 7))
        inputs = width
    return nn.Sequential(*modules)


def _bottlenecks(inputs: int, width: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, dilation)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1, dilation) for _ in range(count - 1)))


def _basic_blocks(inputs: int, width: int, count: int, stride: int, dilation: int, residual: bool) -> nn.Sequential:
    pair = (dilation, dilation)
    first = BasicBlock(inputs, width, stride, pair, residual)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, pair, residual) for _ in range(count - 1)))


def _convolutions(inputs: int, width: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        convolution = nn.Conv2d(width if i else inputs, width, 3, 1 if i else stride, dilation, dilation, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
