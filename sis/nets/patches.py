# SPDX-License-Identifier: Apache-2.0
"""SDM's U-Net on pixel patches: p x p pixels become channels at the door, so that small machines train it quickly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sis.nets.sdm_unet import SDMUNet, UNetConfig


class PatchedUNet(nn.Module):
    """A U-Net over p x p patches of image and label map; p = 1 is the plain network.

    No pixel of the label map is lost: its one-hot channels are folded in the same way as the image's.
    """

    def __init__(self, config: UNetConfig, channels: int, label_channels: int, patch: int) -> None:
        super().__init__()
        self.patch, self.learn_sigma = patch, config.learn_sigma
        self.unet = SDMUNet(config, channels * patch**2, label_channels * patch**2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """As SDMUNet: `(b, c, h, w)` to `(b, c or 2c, h, w)`; h and w divisible by p * 2^(levels - 1)."""
        return self.unfolded(self.unet(self.folded(x), t, self.folded(label)))

    def folded(self, x: Tensor) -> Tensor:
        """Pixels `(b, c, h, w)` as channels of patches `(b, c p^2, h / p, w / p)`."""
        return F.pixel_unshuffle(x, self.patch)

    def unfolded(self, out: Tensor) -> Tensor:
        """The inner network's answer as pixels again."""
        halves = out.chunk(2, dim=1) if self.learn_sigma else (out,)
        return torch.cat([F.pixel_shuffle(half, self.patch) for half in halves], dim=1)

    @property
    def checkpointing(self) -> bool:
        """Whether training keeps block inputs only and computes the insides again for gradients."""
        return self.unet.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.unet.checkpointing = on
