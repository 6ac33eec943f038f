# SPDX-License-Identifier: Apache-2.0
"""Count, mean and scatter of latents for each class and position: one pass, float64, mergeable in any order.

Spatial, categorical and joint prior of SCP-Diff (Eqs. 5, 7 and 8) follow from the one state: an axis is summed out by
the same formula that merges shards (Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sis.errors import SisError

Size = tuple[int, int]


class Accumulator:
    """The moments of latent tokens in cells (class, y, x).

    A cell that was never seen has count, mean and scatter of zero; one that was seen once has a scatter of zero.
    """

    def __init__(self, classes: int, channels: int, size: Size) -> None:
        """The moments of nothing; size is (h, w) of the latents."""
        self.classes, self.channels, self.size = classes, channels, size
        cells = classes * size[0] * size[1]
        self._count = np.zeros(cells, np.int64)
        # Channels last: all numbers of a cell lie together in memory.
        self._mean, self._m2 = np.zeros((cells, channels)), np.zeros((cells, channels))

    @property
    def count(self) -> NDArray[np.int64]:
        """Tokens seen, `(k, h, w)`."""
        return self._count.reshape(self.classes, *self.size)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Means, `(k, c, h, w)`."""
        return self._shown(self._mean)

    @property
    def m2(self) -> NDArray[np.float64]:
        """Sums of squared distances from the mean, `(k, c, h, w)`."""
        return self._shown(self._m2)

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._count.nbytes + self._mean.nbytes + self._m2.nbytes

    def variance(self, ddof: int = 0) -> NDArray[np.float64]:
        """Variances `(k, c, h, w)`: scatter over count minus `ddof`; 0 in unseen cells, NaN where it is undefined."""
        count = self._count[:, None].astype(np.float64)
        undefined = np.broadcast_to((count > 0) & (count <= ddof), self._m2.shape)
        return self._shown(np.where(undefined, np.nan, self._m2 / np.maximum(count - ddof, 1)))

    def add(self, latents: Any, labels: Any, chosen: Any = None) -> None:
        """Take in the tokens of some images.

        Args:
            latents: `(b, c, h, w)`, numpy or torch.
            labels: integers `(b, h, w)` in 0..k-1 at the size of the latents.
            chosen: boolean `(b, h, w)`, the tokens that count; None: all.

        Raises SisError for other shapes, and for ids and numbers that have no place here.
        """
        x, ids = as_array(latents), as_array(labels)
        self._check(x, ids)
        area = self.size[0] * self.size[1]
        cells = ids.reshape(-1, area).astype(np.int64) * area + np.arange(area)
        tokens = np.ascontiguousarray(x.reshape(-1, self.channels, area).transpose(0, 2, 1), np.float64)
        keep = None if chosen is None else as_array(chosen).reshape(-1, area).astype(bool)
        for number, (where, values) in enumerate(zip(cells, tokens, strict=True)):
            if keep is None:
                self._take(where, values)
            else:
                self._take(where[keep[number]], values[keep[number]])

    def _take(self, cells: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add one token to each of some cells, all of them different (an image has one token a position)."""
        count = self._count[cells] + 1
        mean = self._mean.take(cells, axis=0)
        distance = values - mean
        mean += distance / count[:, None]
        distance *= values - mean
        self._count[cells] = count
        self._mean[cells] = mean
        self._m2[cells] += distance

    def merge(self, other: Accumulator) -> Accumulator:
        """The moments of both together. Raises SisError when they do not have the same cells."""
        if self._shape() != other._shape():
            raise SisError(
                f"prior statistics of {other._words()} cannot be merged with those of {self._words()}",
                fix="merge shards of one dataset, resolution and autoencoder",
            )
        merged = Accumulator(self.classes, self.channels, self.size)
        np.add(self._count, other._count, out=merged._count)
        share = (other._count / np.maximum(merged._count, 1))[:, None]
        shift = other._mean - self._mean
        np.add(self._mean, shift * share, out=merged._mean)
        # Where one side is empty this is 0; its share is 0 or 1, so the other side is taken over exactly.
        shift *= shift
        shift *= self._count[:, None] * share
        np.add(self._m2, other._m2, out=merged._m2)
        merged._m2 += shift
        return merged

    def over_classes(self) -> Accumulator:
        """The moments of all classes together at each position: an accumulator of one class."""
        return self._summed(0, 1, self.size)

    def over_positions(self) -> Accumulator:
        """The moments of each class at all positions together: an accumulator of size (1, 1)."""
        return self._summed(1, self.classes, (1, 1))

    def _summed(self, axis: int, classes: int, size: Size) -> Accumulator:
        shape = (self.classes, self.size[0] * self.size[1])
        count = self._count.reshape(*shape, 1)
        mean, m2 = (a.reshape(*shape, self.channels) for a in (self._mean, self._m2))
        whole = count.sum(axis, keepdims=True)
        centre = (count * mean).sum(axis, keepdims=True) / np.maximum(whole, 1)
        found = Accumulator(classes, self.channels, size)
        found._count[:] = whole.reshape(-1)
        found._mean[:] = centre.reshape(-1, self.channels)
        found._m2[:] = (m2 + count * (mean - centre) ** 2).sum(axis).reshape(-1, self.channels)
        return found

    def arrays(self) -> dict[str, NDArray]:
        """The state by name: `count` `(k, h, w)`, `mean` and `m2` `(k, c, h, w)`, as they are stored in files."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    @classmethod
    def from_arrays(cls, count: Any, mean: Any, m2: Any) -> Accumulator:
        """The accumulator with this state, numpy or torch, shaped as in `arrays`. Raises SisError for other shapes."""
        n, first, second = as_array(count), as_array(mean), as_array(m2)
        if first.ndim != 4 or first.shape != second.shape or n.shape != (first.shape[0], *first.shape[2:]):
            raise SisError(f"these are no prior statistics: shapes {n.shape}, {first.shape}, {second.shape}")
        whole = np.isfinite(first).all() and np.isfinite(second).all()
        if not whole or (n < 0).any() or (second < 0).any():
            raise SisError("prior statistics hold numbers that are not finite, or negative counts or scatters")
        classes, channels, h, w = first.shape
        found = cls(classes, channels, (h, w))
        found._count[:] = n.reshape(-1)
        found._mean[:] = first.transpose(0, 2, 3, 1).reshape(-1, channels)
        found._m2[:] = second.transpose(0, 2, 3, 1).reshape(-1, channels)
        return found

    def _shown(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.reshape(self.classes, *self.size, self.channels).transpose(0, 3, 1, 2)

    def _check(self, x: NDArray, ids: NDArray) -> None:
        if x.shape[1:] != (self.channels, *self.size) or ids.shape != (len(x), *self.size):
            raise SisError(
                f"latents {x.shape} with labels {ids.shape}, these statistics are of {self._words()}",
                fix="label maps come at the size of the latents",
            )
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.classes:
            outside = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise SisError(f"label id {outside} in statistics of {self.classes} classes")
        if not np.isfinite(x).all():
            raise SisError("latents are not finite", fix="check the autoencoder")

    def _shape(self) -> tuple[int, int, Size]:
        return self.classes, self.channels, self.size

    def _words(self) -> str:
        return f"{self.classes} classes, {self.channels} channels, {self.size[0]}x{self.size[1]} positions"


def as_array(values: Any) -> NDArray:
    """A numpy view of an array or of a torch tensor on any device."""
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()
    return np.asarray(values)
