# SPDX-License-Identifier: Apache-2.0
"""Edge maps: where an instance map changes."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

#: A numpy array or a torch tensor: both are sliced and compared alike.
Marks = TypeVar("Marks")


def edge_map(instances: NDArray) -> NDArray[np.bool_]:
    """Mark the pixels of ids `(..., h, w)` that differ from one of their four neighbours.

    Both sides of a boundary are marked; the picture's border is none (SPADE and SDM, by their code).
    """
    return mark_edges(np.zeros(instances.shape, np.bool_), instances)


def mark_edges(edges: Marks, instances: Any) -> Marks:
    """Mark in `edges`, all false, what `edge_map` says of `instances`; arrays or tensors of one shape. Returns it."""
    marks: Any = edges
    across = instances[..., :, 1:] != instances[..., :, :-1]
    down = instances[..., 1:, :] != instances[..., :-1, :]
    marks[..., :, 1:] |= across
    marks[..., :, :-1] |= across
    marks[..., 1:, :] |= down
    marks[..., :-1, :] |= down
    return edges
