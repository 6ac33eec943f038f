# SPDX-License-Identifier: Apache-2.0
"""The condition tensor of SPADE, SDM and their kin: one-hot label map, then the edge map as the last channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sis.data.edges import mark_edges


def edge_map(instances: Tensor) -> Tensor:
    """`sis.data.edges.edge_map` on the device: bool `(b, h, w)` of integer ids `(b, h, w)`."""
    return mark_edges(torch.zeros_like(instances, dtype=torch.bool), instances)


def keeps(u: Tensor, drop_rate: float) -> Tensor:
    """Which samples keep their condition, bool like `u`: draws from [0, 1) strictly above the rate (SDM's code).

    A rate of 0 keeps every sample.
    """
    return u > drop_rate if drop_rate else torch.ones_like(u, dtype=torch.bool)


def condition(labels: Tensor, width: int, instances: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """The condition of a batch, float32 `(b, width, h, w)`, with instances `(b, width + 1, h, w)`.

    Args:
        labels: int64 channels `(b, h, w)` in 0..width-1.
        width: channels of the one-hot map.
        instances: integer ids `(b, h, w)` whose edge map becomes the last channel; None for none.
        kept: bool `(b,)`; the condition of every other sample is zero throughout, its edges too. None keeps all.
    """
    tensor = F.one_hot(labels, width).permute(0, 3, 1, 2).float()
    if instances is not None:
        tensor = torch.cat([tensor, edge_map(instances)[:, None].float()], dim=1)
    return tensor if kept is None else tensor * kept[:, None, None, None]
