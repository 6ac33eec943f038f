# SPDX-License-Identifier: Apache-2.0
"""Balls of nearest neighbours in feature space: who lies in whose, as precision, recall, density and coverage ask.

A ball about a row reaches to its k-th nearest other row of the same set. All distances are Euclidean and squared, in
float64 and in strips, so that no n x n matrix is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Float64 distances in memory at once.
_AT_ONCE = 2**23


def squared_radii(rows: NDArray, k: int) -> Array:
    """Squared distance of each of `(n, d)` rows to its k-th nearest other row, `(n)`; needs n > k."""
    out = np.empty(len(rows))
    for place, squares in squared_distances(rows, rows):
        own = np.arange(place.start, place.stop)
        squares[own - place.start, own] = np.inf
        out[place] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return out


def squared_distances(rows: NDArray, others: NDArray) -> Iterator[tuple[slice, Array]]:
    """Strips of the squared distances of `(n, d)` from `(m, d)`: which rows, and `(rows, m)`."""
    centre = np.asarray(others, np.float64).mean(0)  # nearer to zero, less cancels
    y = np.asarray(others, np.float64) - centre
    lengths = (y * y).sum(1)
    step = max(1, _AT_ONCE // len(y))
    for i in range(0, len(rows), step):
        x = np.asarray(rows[i : i + step], np.float64) - centre
        squares = (x * x).sum(1)[:, None] + lengths - 2 * x @ y.T
        yield slice(i, i + len(x)), np.maximum(squares, 0, out=squares)


def share_in_balls(rows: NDArray, weights: NDArray, centres: NDArray, k: int) -> Array:
    """Share of the weight of `(n, d)` rows that lies in any ball about the centres, edge included: `(r)`."""
    radii, inside = squared_radii(centres, k), np.empty(len(rows))
    for place, squares in squared_distances(rows, centres):
        inside[place] = (squares <= radii).any(1)
    return _mean(inside, weights)


def share_in_weighted_balls(rows: NDArray, centres: NDArray, weights: NDArray, k: int) -> Array:
    """Share of rows that lie in a ball about any centre that has weight, edge included: `(r)`.

    The balls are those of the whole set of centres: a resample repeats rows, and repeats would shrink them to nothing.
    """
    radii, drawn = squared_radii(centres, k), (np.asarray(weights) > 0).T.astype(np.float32)
    found = np.zeros(drawn.shape[1])
    for _, squares in squared_distances(rows, centres):
        found += ((squares <= radii).astype(np.float32) @ drawn > 0).sum(0)
    return found / len(rows)


def density(rows: NDArray, weights: NDArray, centres: NDArray, k: int) -> Array:
    """Mean number of balls about the centres that a row lies inside, as a share of k: `(r)`."""
    radii, count = squared_radii(centres, k), np.empty(len(rows))
    for place, squares in squared_distances(rows, centres):
        count[place] = (squares < radii).sum(1)
    return _mean(count / k, weights)


def coverage(rows: NDArray, weights: NDArray, centres: NDArray, k: int) -> Array:
    """Share of balls about the centres that hold a row with weight: `(r)`."""
    radii, drawn = squared_radii(centres, k), (np.asarray(weights) > 0).T.astype(np.float32)
    found = np.zeros(drawn.shape[1])
    for place, squares in squared_distances(centres, rows):
        found += ((squares < radii[place, None]).astype(np.float32) @ drawn > 0).sum(0)
    return found / len(centres)


def _mean(of_rows: Array, weights: NDArray) -> Array:
    """The weighted mean for each row of weights; NaN without weight."""
    w = np.asarray(weights, np.float64)
    total = w.sum(1)
    return np.divide(w @ of_rows, total, out=np.full(len(w), np.nan), where=total > 0)
