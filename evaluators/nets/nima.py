# SPDX-License-Identifier: Apache-2.0
"""NIMA: networks that predict how people would rate a picture, as chances of 1 to 10 (Talebi and Milanfar 2018).

A classifier's trunk, then ten outputs with a softmax in place of its thousand. The names of `VggNima` are those of the
PyTorch checkpoint listed in config/weights.yaml: torchvision's VGG-16 `features.<i>`, then `classifier.1`. No PyTorch
checkpoint of `MobileNima` is published; its names are those of Keras' MobileNet layers.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

RATINGS = 10
#: Channels of VGG-16's convolutions, each followed by a ReLU; 0 halves the map.
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
#: Channels and stride of MobileNet's thirteen separable convolutions.
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class VggNima(nn.Module):
    """VGG-16's convolutions and one linear layer on the whole 7x7 map: pictures of 224x224 only."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _VGG16:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.75), nn.Linear(512 * 7 * 7, RATINGS), nn.Softmax(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Chances of the ratings 1..10, `(b, 10)`, of normalised `(b, 3, 224, 224)`."""
        return self.classifier(self.features(x).flatten(1))


class MobileNima(nn.Module):
    """MobileNet (2017, width 1) with average pooling and one linear layer: pictures of any size from 32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.conv1_bn = _norm(32)
        for i, ((before, _), (width, stride)) in enumerate(pairwise(((32, 1), *_MOBILENET)), 1):
            self.add_module(f"conv_dw_{i}", nn.Conv2d(before, before, 3, stride, groups=before, bias=False))
            self.add_module(f"conv_dw_{i}_bn", _norm(before))
            self.add_module(f"conv_pw_{i}", nn.Conv2d(before, width, 1, bias=False))
            self.add_module(f"conv_pw_{i}_bn", _norm(width))
        self.dense_1 = nn.Linear(1024, RATINGS)

    def forward(self, x: Tensor) -> Tensor:
        """Chances of the ratings 1..10, `(b, 10)`, of `(b, 3, h, w)` in [-1, 1]."""
        for name, layer in self.named_children():
            if name == "dense_1":
                break
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                x = nn.functional.pad(x, (0, 1, 0, 1))  # Keras pads strided convolutions at the end only
            elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                x = nn.functional.pad(x, (1, 1, 1, 1))
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = nn.functional.relu6(x)
        return self.dense_1(x.mean((2, 3))).softmax(1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
