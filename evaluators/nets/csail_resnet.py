# SPDX-License-Identifier: Apache-2.0
"""Residual networks with a stem of three 3x3 convolutions, as encoders of the ADE20K judges (He et al. 2016).

Names of the state dict are those of CSAILVision's encoder checkpoints; the classifier is left out there too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from evaluators.nets.residual import BasicBlock, Bottleneck

#: Channels of the four stages, before a bottleneck's widening.
WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Architecture:
    """Kind of residual block, blocks of the four stages, and whether stages 3 and 4 dilate instead of striding."""

    bottleneck: bool
    blocks: tuple[int, int, int, int]
    dilated: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four feature maps."""
        return tuple((4 if self.bottleneck else 1) * width for width in WIDTHS)


ARCHITECTURES = {
    "resnet18": Architecture(False, (2, 2, 2, 2)),
    "resnet50": Architecture(True, (3, 4, 6, 3)),
    "resnet101": Architecture(True, (3, 4, 23, 3)),
    "resnet18dilated": Architecture(False, (2, 2, 2, 2), dilated=True),
    "resnet50dilated": Architecture(True, (3, 4, 6, 3), dilated=True),
    "resnet101dilated": Architecture(True, (3, 4, 23, 3), dilated=True),
}


class CsailResnet(nn.Module):
    """The encoder: feature maps at strides 4, 8, 16 and 32; at strides 4, 8, 8 and 8 where it is dilated."""

    def __init__(self, arch: str) -> None:
        """`arch`: a key of ARCHITECTURES."""
        super().__init__()
        chosen = ARCHITECTURES[arch]
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(128)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = (128, *chosen.channels)
        self.layer1 = _stage(chosen, 0, inputs[0], 1, (1, 1))
        self.layer2 = _stage(chosen, 1, inputs[1], 2, (1, 1))
        if chosen.dilated:  # where the stride was, half the dilation of what follows
            self.layer3 = _stage(chosen, 2, inputs[2], 1, (1, 2))
            self.layer4 = _stage(chosen, 3, inputs[3], 1, (2, 4))
        else:
            self.layer3 = _stage(chosen, 2, inputs[2], 2, (1, 1))
            self.layer4 = _stage(chosen, 3, inputs[3], 2, (1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`x` normalised `(b, 3, h, w)` -> the outputs of the four stages, finest first."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.maxpool(self.relu(self.bn3(self.conv3(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def _stage(arch: Architecture, index: int, inputs: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
    """A stage; its first 3x3 convolution dilates by the first of `dilations`, all others by the second.

    The first block always projects: stage 1 changes the width, the others strode before they were dilated.
    """
    width, outputs, following = WIDTHS[index], arch.channels[index], dilations[1]
    if arch.bottleneck:
        first = Bottleneck(inputs, width, stride, dilations[0])
        return nn.Sequential(first, *(Bottleneck(outputs, width, 1, following) for _ in range(arch.blocks[index] - 1)))
    pair = (following, following)
    others = (BasicBlock(outputs, width, 1, pair) for _ in range(arch.blocks[index] - 1))
    return nn.Sequential(BasicBlock(inputs, width, stride, dilations), *others)
