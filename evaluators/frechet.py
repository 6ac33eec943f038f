# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance of two Gaussians, from float64 moments, without complex square roots.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

(Dowson and Landau 1982). With any F of F F^T = S_2 the last trace is the sum of the square roots of the eigenvalues of
F^T S_1 F, which is symmetric; and where S_1 = Y^T Y, the sum of the singular values of Y F, which is smaller where rows
are fewer than columns (Mathiasen and Hvilshøj 2020). Singular covariances need no care: nothing is inverted and nothing
is added to the diagonal, while a general square root of S_1 S_2 turns its zero eigenvalues into rounding noise of size
(machine epsilon * largest)^(1/2), each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Float64 numbers that may lie in memory at once for features: rows beyond it are taken in parts.
_AT_ONCE = 2**23


@dataclass(frozen=True)
class Moments:
    """Count, mean `(d)` and scatter about the mean `(d, d)` of feature rows, float64; mergeable."""

    n: float
    mean: Array
    scatter: Array

    @classmethod
    def of(cls, features: NDArray, weights: NDArray | None = None) -> Moments:
        """Moments of rows `(n, d)`; weights `(n)` are multiplicities. Many rows are taken in parts and merged."""
        if features.size > _AT_ONCE:
            step = max(1, _AT_ONCE // features.shape[1])
            starts = range(0, len(features), step)
            cuts = [(features[i : i + step], None if weights is None else weights[i : i + step]) for i in starts]
            return reduce(Moments.merge, (Moments.of(x, w) for x, w in cuts if w is None or np.any(w)))
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


def factor(covariance: Array) -> Array:
    """An F `(d, d)` with F F^T = covariance: Cholesky's, or the symmetric root of a singular matrix."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:
        return root(covariance)


def trace_of_root(one: Array, two: Array) -> float:
    """tr (S_1 S_2)^(1/2) of two covariances `(d, d)`."""
    return _trace_of_root(one, factor(two))


def _trace_of_root(covariance: Array, f: Array) -> float:
    return float(roots(np.linalg.eigvalsh(f.T @ covariance @ f)).sum())


def distance(one: Moments, two: Moments) -> float:
    """The squared Fréchet distance of two moments (what the literature calls FID, with any features)."""
    gap = one.mean - two.mean
    traces = np.trace(one.covariance) + np.trace(two.covariance)
    return float(gap @ gap + traces - 2 * trace_of_root(one.covariance, two.covariance))


@dataclass(frozen=True)
class Target:
    """What distances are taken from: mean `(d)`, trace of the covariance and F `(d, k)` with F F^T = covariance."""

    mean: Array
    trace: float
    factor: Array

    @classmethod
    def of(cls, features: NDArray) -> Target:
        """From rows `(n, d)`, two or more; k is the smaller of n and d."""
        if len(features) > features.shape[1]:
            moments = Moments.of(features)
            return cls(moments.mean, float(np.trace(moments.covariance)), factor(moments.covariance))
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        y = (x - mean) / np.sqrt(len(x) - 1)
        return cls(mean, float((y * y).sum()), y.T)

    def distance(self, features: NDArray) -> float:
        """The squared Fréchet distance of rows `(n, d)`, two or more; as `distance` of both moments, but faster."""
        if len(features) > features.shape[1]:
            moments = Moments.of(features)
            mean, trace = moments.mean, np.trace(moments.covariance)
            cross = _trace_of_root(moments.covariance, self.factor)
        else:
            x = np.asarray(features, np.float64)
            mean = x.mean(0)
            y = (x - mean) / np.sqrt(len(x) - 1)
            trace, cross = (y * y).sum(), singular_values(y @ self.factor).sum()
        gap = mean - self.mean
        return float(gap @ gap + trace + self.trace - 2 * cross)


def singular_values(z: Array) -> Array:
    """Singular values of `(n, k)` from its smaller Gram matrix; those below 1e-8 of the largest count as zero."""
    return roots(np.linalg.eigvalsh(z @ z.T if len(z) < z.shape[1] else z.T @ z))


def roots(values: NDArray) -> Array:
    """Square roots of the eigenvalues of a positive semidefinite matrix, ascending; rounding counts as zero."""
    least = len(values) * np.finfo(np.float64).eps * values[-1]
    return np.sqrt(np.where(values > least, values, 0))


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
