# SPDX-License-Identifier: Apache-2.0
"""The bootstrap over label maps: which maps a replicate draws depends on seed, replicate and number of maps.

So all runs under one protocol see the same maps in replicate i, and differences of replicates are paired.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def multiplicities(seed: int, replicates: int, maps: int) -> NDArray[np.float64]:
    """How often each replicate draws each sorted label map: `(replicates, maps)`, rows sum to `maps`."""
    out = np.empty((replicates, maps))
    for i in range(replicates):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, i, maps])))
        out[i] = np.bincount(rng.integers(0, maps, maps), minlength=maps)
    return out


def interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval; replicates in which the metric is undefined (NaN) are left out."""
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
