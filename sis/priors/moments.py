# SPDX-License-Identifier: Apache-2.0
"""Count, mean and scatter for each class: one pass, float64, exactly mergeable over shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Moments of vectors that belong to classes.

    count: `(k,)`; mean: `(k, d)`; m2: `(k, d)`, sums of squared distances from the mean. All float64. A class that
    was never seen has count, mean and m2 of zero.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def empty(cls, classes: int, width: int) -> Moments:
        """The moments of nothing."""
        return cls(np.zeros(classes), np.zeros((classes, width)), np.zeros((classes, width)))

    @classmethod
    def of(cls, vectors: NDArray[np.float64], labels: NDArray[np.uint8], classes: int) -> Moments:
        """The moments of vectors `(n, d)` with class ids `(n,)`."""
        count = np.bincount(labels, minlength=classes).astype(np.float64)
        safe = np.maximum(count, 1)[:, None]
        columns = range(vectors.shape[1])
        mean = np.stack([np.bincount(labels, vectors[:, d], classes) for d in columns], axis=1) / safe
        centred = (vectors - mean[labels]) ** 2
        m2 = np.stack([np.bincount(labels, centred[:, d], classes) for d in columns], axis=1)
        return cls(count, mean.astype(np.float64), m2.astype(np.float64))

    def merge(self, other: Moments) -> Moments:
        """The moments of both together (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)[:, None]
        shift = other.mean - self.mean
        m2 = self.m2 + other.m2 + shift**2 * self.count[:, None] * share
        return Moments(count, self.mean + shift * share, m2)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}
