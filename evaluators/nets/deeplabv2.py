# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2 on a ResNet with the maximum over scales (MSC), which judges COCO-Stuff.

Chen et al., "DeepLab" (TPAMI 2018), as kazuto1011/deeplab-pytorch builds it (MIT): parameters carry the names of its
checkpoint `deeplabv2_resnet101_msc-cocostuff164k-100000.pth`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Interpolation = Literal["old", "new"]


class ConvNorm(nn.Sequential):
    """Convolution without bias and batch norm, then ReLU if wanted."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True
    ) -> None:
        padding = (kernel // 2) * dilation
        layers: list[tuple[str, nn.Module]] = [
            ("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)),
            ("bn", nn.BatchNorm2d(outputs)),
        ]
        super().__init__(OrderedDict([*layers, ("relu", nn.ReLU())] if relu else layers))


class Bottleneck(nn.Module):
    """Residual block whose first, 1x1 convolution has the stride (as in Caffe's ResNet)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        middle = outputs // 4
        self.reduce = ConvNorm(inputs, middle, 1, stride)
        self.conv3x3 = ConvNorm(middle, middle, 3, dilation=dilation)
        self.increase = ConvNorm(middle, outputs, 1, relu=False)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, relu=False) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


class Stem(nn.Sequential):
    """7x7 convolution and max-pool, both of stride 2; the pool keeps a last odd row and column (`ceil_mode`)."""

    def __init__(self) -> None:
        layers = [("conv1", ConvNorm(3, 64, 7, 2)), ("pool", nn.MaxPool2d(3, 2, 1, ceil_mode=True))]
        super().__init__(OrderedDict(layers))


class SummedASPP(nn.Module):
    """Atrous spatial pyramid: the sum of 3x3 convolutions of several rates, each straight to the classes."""

    def __init__(self, inputs: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            self.add_module(f"c{i}", nn.Conv2d(inputs, classes, 3, padding=rate, dilation=rate))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, sum(convolution(x) for convolution in self.children()))


class DeepLabV2(nn.Sequential):
    """Network at one scale: float `(b, 3, h, w)` -> logits `(b, classes, h', w')` at output stride 8."""

    def __init__(self, blocks: Sequence[int], classes: int, rates: Sequence[int]) -> None:
        strides, dilations, widths = (1, 2, 1, 1), (1, 1, 2, 4), (256, 512, 1024, 2048)
        layers: list[tuple[str, nn.Module]] = [("layer1", Stem())]
        inputs = 64
        for i, (count, stride, dilation, width) in enumerate(zip(blocks, strides, dilations, widths, strict=True)):
            stage = OrderedDict[str, nn.Module]()
            for k in range(count):
                first = k == 0
                block = Bottleneck(inputs if first else width, width, stride if first else 1, dilation, first)
                stage[f"block{k + 1}"] = block
            layers.append((f"layer{i + 2}", nn.Sequential(stage)))
            inputs = width
        super().__init__(OrderedDict([*layers, ("aspp", SummedASPP(inputs, classes, rates))]))


class MSC(nn.Module):
    """Maximum over scales of a network; `base` holds all the weights."""

    def __init__(self, base: DeepLabV2, scales: Sequence[float], interpolation: Interpolation) -> None:
        super().__init__()
        self.base = base
        self.scales = tuple(scales)
        self.interpolation: Interpolation = interpolation

    def forward(self, x: Tensor) -> Tensor:
        """`x` float `(b, 3, h, w)` -> logits `(b, classes, h', w')` at output stride 8."""
        return maximum_over_scales(self.base, x, self.scales, self.interpolation)


def maximum_over_scales(
    base: Callable[[Tensor], Tensor], x: Tensor, scales: Sequence[float], interpolation: Interpolation
) -> Tensor:
    """Pixelwise maximum of `base(x)` and of its answers for resized copies of `x`, brought to the size of the first.

    interpolation: how a copy of `p` times the size is sampled where `p h` is no whole number.
        "old": at steps of `h / floor(p h)`, as torch did up to 1.5, when weights and scores were published;
        "new": at steps of `1 / p`, as the authors' code does with torch 1.6 and later.
    """
    logits, recompute = base(x), interpolation == "old"
    for scale in scales:
        copy = F.interpolate(
            x, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=recompute
        )
        other = F.interpolate(base(copy), logits.shape[2:], mode="bilinear", align_corners=False)
        logits = torch.maximum(logits, other)
    return logits
