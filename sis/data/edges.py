# SPDX-License-Identifier: Apache-2.0
"""Edge maps: where an instance map changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def edge_map(instances: NDArray) -> NDArray[np.bool_]:
    """Mark the pixels of ids `(..., h, w)` that differ from one of their four neighbours.

    Both sides of a boundary are marked; the picture's border is none (SPADE and SDM, by their code).
    """
    edges = np.zeros(instances.shape, np.bool_)
    across = instances[..., :, 1:] != instances[..., :, :-1]
    down = instances[..., 1:, :] != instances[..., :-1, :]
    edges[..., :, 1:] |= across
    edges[..., :, :-1] |= across
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return edges
