# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance of two Gaussians, from float64 moments, without complex square roots.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

(Dowson and Landau 1982). With R = S_2^(1/2) symmetric, the last trace is the sum of the square roots of the
eigenvalues of R S_1 R; and where S_1 = Y^T Y, of those of Y R (Y R)^T, which is smaller where
rows are fewer than columns (Mathiasen and Hvilshøj 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean `(d)` and scatter about the mean `(d, d)` of feature rows, float64; mergeable."""

    n: float
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: NDArray, weights: NDArray | None = None) -> Moments:
        """Moments of rows `(n, d)`; weights `(n)` are multiplicities."""
        x = np.asarray(features, np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
        mean = w @ x / w.sum()
        y = np.sqrt(w)[:, None] * (x - mean)
        return cls(float(w.sum()), mean, y.T @ y)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan, Golub and LeVeque 1979)."""
        n = self.n + other.n
        d = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(d, d) * (self.n * other.n / n)
        return Moments(n, self.mean + d * (other.n / n), scatter)

    @property
    def covariance(self) -> Array:
        """The unbiased covariance `(d, d)`; needs two rows."""
        return self.scatter / (self.n - 1)


def root(covariance: Array) -> Array:
    """The symmetric square root of a positive semidefinite matrix; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def distance(one: Moments, two: Moments) -> float:
    """The squared Fréchet distance of two moments (what the literature calls FID, with any features)."""
    r = root(two.covariance)
    values = np.linalg.eigvalsh(r @ one.covariance @ r)
    cross = np.sqrt(np.clip(values, 0, None)).sum()
    gap = one.mean - two.mean
    return float(gap @ gap + np.trace(one.covariance) + np.trace(two.covariance) - 2 * cross)


def distances(features: NDArray, weights: NDArray, reference: Moments) -> Array:
    """Squared distances of weighted feature rows from the reference, one for each row of weights.

    Args:
        features: `(n, d)`.
        weights: `(r, n)` multiplicities of the rows; each sums to at least 2.
        reference: moments of the real images.

    Returns:
        `(r)` float64; NaN where the weights sum to less than 2.
    """
    x = np.asarray(features, np.float64)
    r, trace = root(reference.covariance), np.trace(reference.covariance)
    out = np.full(len(weights), np.nan)
    for i, w in enumerate(np.asarray(weights, np.float64)):
        rows = w > 0
        n = w.sum()
        if n < 2:
            continue
        mean = w @ x / n
        y = np.sqrt(w[rows] / (n - 1))[:, None] * (x[rows] - mean)
        z = y @ r
        gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None)).sum()
        gap = mean - reference.mean
        out[i] = gap @ gap + (y * y).sum() + trace - 2 * cross
    return out
