# SPDX-License-Identifier: Apache-2.0
"""The kernel distance of Bińkowski et al. (2018): the squared maximum mean discrepancy of two sets of features.

    k(x, y) = (x.y / d + 1)^3
    MMD^2 = mean of k(x_i, x_j), i != j  +  mean of k(y_i, y_j), i != j  -  2 mean of k(x_i, y_j)

Unlike a Fréchet distance it is unbiased at any number of rows, and may be negative.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Float64 kernel values in memory at once.
_AT_ONCE = 2**23


def kernel(x: Array, y: Array) -> Array:
    """k of all pairs of rows, `(n, d)` and `(m, d)` to `(n, m)`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distances(features: NDArray, weights: NDArray, real: NDArray) -> Array:
    """The unbiased MMD^2 over all pairs, one for each row of weights; never more than a strip of the n x n kernel.

    A pair counts by the product of its rows' weights, an image never with itself, so that resampling adds no bias.

    Args:
        features: `(n, d)`.
        weights: `(r, n)` multiplicities of the rows.
        real: `(m, d)`, two rows or more, each counts once.

    Returns:
        `(r)` float64; NaN where no two rows have weight.
    """
    x, y, w = (np.asarray(a, np.float64) for a in (features, real, weights))
    m, ones = len(y), np.ones((1, len(y)))
    own, pairs = _weighted_sums(x, w), w.sum(1) ** 2 - (w * w).sum(1)
    reals = _weighted_sums(y, ones)[0] / (m * (m - 1))
    across = w @ np.concatenate([kernel(part, y).sum(1) for part in _parts(x, m)])
    out = np.full(len(w), np.nan)
    defined = pairs > 0
    out[defined] = own[defined] / pairs[defined] + reals - 2 * across[defined] / (w.sum(1)[defined] * m)
    return out


def subset_distances(features: NDArray, real: NDArray, subsets: int, size: int, seed: int) -> Array:
    """The unbiased MMD^2 of random subsets of both sets, drawn without repeats: `(subsets)`."""
    rng, out = np.random.default_rng(seed), np.empty(subsets)
    for i in range(subsets):
        x = features[rng.choice(len(features), size, replace=False)]
        y = real[rng.choice(len(real), size, replace=False)]
        out[i] = kernel_distances(x, np.ones((1, size)), y)[0]
    return out


def _weighted_sums(x: Array, w: Array) -> Array:
    """Sum of w_i w_j k(x_i, x_j) over i != j for each row of w."""
    diagonal = ((x * x).sum(1) / x.shape[1] + 1) ** 3
    done, out = 0, -(w * w) @ diagonal
    for part in _parts(x, len(x)):
        out += np.einsum("ri,ir->r", w[:, done : done + len(part)], kernel(part, x) @ w.T)
        done += len(part)
    return out


def _parts(x: Array, others: int) -> list[Array]:
    step = max(1, _AT_ONCE // others)
    return [x[i : i + step] for i in range(0, len(x), step)]
