# SPDX-License-Identifier: Apache-2.0
"""From the network's range to 8-bit pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from sis.errors import SisError, first_of


def to_uint8(x: Tensor, image_ids: tuple[str, ...]) -> Tensor:
    """Map [-1, 1] to 0..255, clipped and rounded to nearest. Raises SisError naming images that are not finite."""
    finite = torch.isfinite(x).flatten(1).all(1).tolist()
    if not all(finite):
        bad = [i for i, good in zip(image_ids, finite, strict=True) if not good]
        raise SisError(f"sampled images are not finite: {first_of(dict.fromkeys(bad))}", fix="check the model")
    return ((x + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
