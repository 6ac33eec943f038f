# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a label map look alike: the same labels within two pixels, the image's border seen as a label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_REACH = 2  # two 3x3 convolutions see two pixels far
_BITS = 62


def neighbourhoods(label: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct 5x5 neighbourhoods of label maps `(b, k, h, w)` with any values.

    Returns:
        index: int64 `(b, h, w)`, the number of every pixel's neighbourhood.
        first: int64 `(n,)`, the first pixel of each number, counted through `(b, h, w)`.
    """
    ids = _columns(label)
    padded = F.pad(ids + 1, (_REACH,) * 4)  # 0 stands for what lies outside
    for axis in (2, 1):
        length = ids.shape[axis]
        joined = padded.narrow(axis, 0, length)
        for offset in range(1, 2 * _REACH + 1):
            joined = _paired(joined, padded.narrow(axis, offset, length))
        padded = joined
    pixels = torch.arange(padded.numel(), device=label.device)
    first = pixels.new_full((int(padded.max()) + 1,), padded.numel())
    return padded, first.scatter_reduce(0, padded.flatten(), pixels, "amin")


def _columns(label: Tensor) -> Tensor:
    """A number for each distinct column of channels: int64 `(b, h, w)`."""
    if bool(((label == 0) | (label == 1)).all()):
        bits = label.to(torch.int64)
        found = torch.zeros_like(bits[:, 0])
        for start in range(0, label.shape[1], _BITS):
            part = bits[:, start : start + _BITS]
            places = torch.arange(part.shape[1], device=label.device).reshape(1, -1, 1, 1)
            found = _paired(found, torch.unique((part << places).sum(1), return_inverse=True)[1])
        return found
    columns = label.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.unique(columns, dim=0, return_inverse=True)[1].reshape(label.shape[0], *label.shape[2:])


def _paired(a: Tensor, b: Tensor) -> Tensor:
    """A number for each distinct pair of numbers; no two pairs share one, so nothing is lost."""
    return torch.unique(a * (b.max() + 1) + b, return_inverse=True)[1]
