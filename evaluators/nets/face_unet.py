# SPDX-License-Identifier: Apache-2.0
"""The U-Net that parses faces, which judges CelebAMask-HQ.

Ronneberger et al., "U-Net" (2015), as the repository of CelebAMask-HQ builds it for `face_parsing`: parameters carry
the names of its checkpoint `model.pth`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sis.errors import SisError

#: Channels of the five levels, before they are divided by `feature_scale`.
WIDTHS = (64, 128, 256, 512, 1024)
#: Four halvings: sides must be divisible by it.
STRIDE = 16


class TwoConvolutions(nn.Module):
    """Twice a 3x3 convolution with bias, batch norm (if wanted) and ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, norm)
        self.conv2 = _convolution(outputs, outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class UpStep(nn.Module):
    """Doubles the sides by a transposed convolution, joins the encoder's map before it, and convolves twice."""

    def __init__(self, inputs: int, outputs: int, norm: bool) -> None:
        super().__init__()
        self.conv = TwoConvolutions(inputs, outputs, norm)
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], 1))


class FaceUNet(nn.Module):
    """float `(b, 3, h, w)` in [-1, 1] -> logits `(b, classes, h, w)`; sides divisible by 16."""

    def __init__(self, feature_scale: int = 4, classes: int = 19, inputs: int = 3, norm: bool = True) -> None:
        super().__init__()
        w = [width // feature_scale for width in WIDTHS]
        self.conv1 = TwoConvolutions(inputs, w[0], norm)
        self.conv2 = TwoConvolutions(w[0], w[1], norm)
        self.conv3 = TwoConvolutions(w[1], w[2], norm)
        self.conv4 = TwoConvolutions(w[2], w[3], norm)
        self.center = TwoConvolutions(w[3], w[4], norm)
        self.up_concat4 = UpStep(w[4], w[3], norm)
        self.up_concat3 = UpStep(w[3], w[2], norm)
        self.up_concat2 = UpStep(w[2], w[1], norm)
        self.up_concat1 = UpStep(w[1], w[0], norm)
        self.final = nn.Conv2d(w[0], classes, 1)
        self.halve = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Raises SisError for sides that four halvings do not divide."""
        refuse_uneven((x.shape[2], x.shape[3]))
        level1 = self.conv1(x)
        level2 = self.conv2(self.halve(level1))
        level3 = self.conv3(self.halve(level2))
        level4 = self.conv4(self.halve(level3))
        x = self.center(self.halve(level4))
        x = self.up_concat4(level4, x)
        x = self.up_concat3(level3, x)
        x = self.up_concat2(level2, x)
        return self.final(self.up_concat1(level1, x))


def refuse_uneven(size: tuple[int, int]) -> None:
    """Raise SisError unless both sides are multiples of 16, for the decoder's maps would not meet the encoder's."""
    if size[0] % STRIDE or size[1] % STRIDE:
        raise SisError(
            f"the face U-Net needs sides divisible by {STRIDE}, found {size[0]}x{size[1]}",
            fix="its authors feed it 512x512",
        )


def _convolution(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU())
