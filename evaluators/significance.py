# SPDX-License-Identifier: Apache-2.0
"""How surprising a difference is: p-values of bootstrap replicates, and what several of them allow to say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def p_value(differences: NDArray[np.float64]) -> float:
    """The two-sided p-value of R bootstrap replicates d_i of a difference; NaN where none is defined.

        p = min(1, 2 min(1 + #{i: d_i <= 0}, 1 + #{i: d_i >= 0}) / (R + 1))

    (Davison and Hinkley 1997, ch. 4). Undefined replicates (NaN) do not count. Each tail is known to 1 / (R + 1), so
    p is never below 2 / (R + 1). Where p is below 5 %, the 95 % percentile interval of the replicates excludes 0.
    """
    d = differences[~np.isnan(differences)]
    if not len(d):
        return float("nan")
    tail = 1 + min(int((d <= 0).sum()), int((d >= 0).sum()))
    return min(1.0, 2 * tail / (len(d) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that comparing each with a level bounds the chance of any false alarm by it (Holm 1979).

    That holds however the compared numbers depend on each other.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
