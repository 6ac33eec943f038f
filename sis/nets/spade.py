# SPDX-License-Identifier: Apache-2.0
"""Spatially-adaptive normalisation: scale and shift of every pixel follow from the label map (SDM, Eq. 8)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F


def groups_of(channels: int, groups: int) -> int:
    """The largest number of groups up to `groups` that divides `channels`."""
    return next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)


class Modulations(Protocol):
    """Scales and shifts that are known already: stands in for the label map where one map serves many passes."""

    def of(self, spade: SPADE) -> tuple[Tensor, Tensor]:
        """Scale 1 + gamma and shift beta of one norm, both `(b or 1, c, h, w)`."""
        ...


class SPADE(nn.Module):
    """Group norm whose scale and shift are convolutions of the label map.

    The authors' code computes (1 + gamma) * norm(x) + beta, where the paper prints gamma * norm(x) + beta. The label
    map is resized by plain nearest sampling, i.e. the top-left pixel of each cell.
    """

    def __init__(self, channels: int, label_channels: int, hidden: int, groups: int = 32) -> None:
        super().__init__()
        self.channels, self.hidden_channels = channels, hidden
        self.norm = nn.GroupNorm(groups_of(channels, groups), channels, eps=1e-5, affine=False)
        self.shared = nn.Conv2d(label_channels, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor | Modulations) -> Tensor:
        """Modulate features `(b, c, h, w)` by a one-hot map `(b, k, H, W)` of any size."""
        size = (x.shape[-2], x.shape[-1])
        gain, shift = self.modulation(resized(label, size)) if isinstance(label, Tensor) else label.of(self)
        return self.norm(x) * gain + shift

    def modulation(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Scale 1 + gamma and shift beta `(b, c, h, w)` of a one-hot map `(b, k, h, w)`."""
        actv = self.hidden(label)
        return 1 + self.gamma(actv), self.beta(actv)

    def hidden(self, label: Tensor) -> Tensor:
        """What both convolutions read: `(b, hidden, h, w)`."""
        return F.relu(self.shared(label))


def resized(label: Tensor, size: tuple[int, int]) -> Tensor:
    """The label map at another size `(h, w)`: the top-left pixel of each cell."""
    return F.interpolate(label, size=size, mode="nearest")


class AffineNorm(nn.Module):
    """Ordinary group norm with the call signature of SPADE; the label map is not used."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups_of(channels, groups), channels, eps=1e-5)

    def forward(self, x: Tensor, label: Tensor | Modulations) -> Tensor:
        """Normalise features `(b, c, h, w)`."""
        return self.norm(x)
