# SPDX-License-Identifier: Apache-2.0
"""Label maps at the resolution of the latents, as SCP-Diff's priors index them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sis.data.resize import Size, bilinear, rounded
from sis.errors import SisError
from sis.priors.accumulator import as_array


def latent_labels(labels: Any, size: Size) -> NDArray[np.int64]:
    """Scale label maps `(b, H, W)` down to `size` (h, w) by nearest neighbour: int64 `(b, h, w)`.

    Each cell takes the id of its first pixel, floor(y H / h) and floor(x W / w): torch's rule, and that of the released
    code. Raises SisError when `size` is larger than the maps.
    """
    maps = as_array(labels)
    if maps.ndim != 3 or maps.shape[1] < size[0] or maps.shape[2] < size[1]:
        raise SisError(f"label maps {maps.shape} cannot be scaled down to {size[0]}x{size[1]}")
    rows = np.arange(size[0]) * maps.shape[1] // size[0]
    columns = np.arange(size[1]) * maps.shape[2] // size[1]
    return maps[:, rows[:, None], columns].astype(np.int64)


def released_labels(labels: Any, working: Size, size: Size) -> NDArray[np.int64]:
    """The same by way of `working` (H', W') as released: ids blended like grey levels, then nearest neighbour.

    The antialiased bilinear filter of the released loaders invents ids at boundaries (AIR-DISCOVER/SCP-Diff-Toolkit
    @859f671), and its priors count them as classes. Maps `(b, H, W)` hold ids 0..255; at size `working` nothing is
    invented.
    """
    maps = as_array(labels)
    if maps.ndim != 3 or maps.min(initial=0) < 0 or maps.max(initial=0) > 255:
        raise SisError(f"label maps {maps.shape} must be (b, h, w) with ids 0..255")
    if maps.shape[1:] != tuple(working):
        maps = np.stack([rounded(bilinear(one, working)) for one in maps])
    return latent_labels(maps, size)
