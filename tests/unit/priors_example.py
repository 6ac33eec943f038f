# SPDX-License-Identifier: Apache-2.0
"""A small training split for tests of priors, and statistics by the plain definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sis.priors.params import StatisticsParams
from sis.priors.prior import Gaussians, Prior
from sis.priors.statistics import Encoded


@dataclass
class Split:
    """Latents `(n, c, h, w)`, their deviations and label maps at eight times the size; counts what is read."""

    mean: NDArray
    std: NDArray
    labels: NDArray
    reads: list[int]

    @classmethod
    def made(cls, count: int, classes: int, size: tuple[int, int] = (4, 6), seed: int = 0) -> Split:
        rng = np.random.default_rng(seed)
        small = rng.integers(0, classes, (count, size[0] // 2, size[1] // 2))
        labels = np.kron(small, np.ones((16, 16), np.int64))
        mean = (rng.normal(size=(count, 3, *size)) + labels[:, None, ::8, ::8]).astype(np.float32)
        return cls(mean, np.full_like(mean, 0.5), labels, [])

    @property
    def ids(self) -> list[str]:
        return [f"image-{i:03d}" for i in range(len(self.mean))]

    @property
    def small(self) -> NDArray[np.int64]:
        return self.labels[:, ::8, ::8]

    def read(self, indices: Sequence[int]) -> Encoded:
        self.reads += list(indices)
        rows = list(indices)
        return Encoded(torch.from_numpy(self.mean[rows]), torch.from_numpy(self.std[rows]), self.labels[rows])


def params(**changed: object) -> StatisticsParams:
    return StatisticsParams.model_validate(changed)


def plain_prior(counts: NDArray, mean: float = 10.0, std: float = 2.0) -> Prior:
    """Joint counts `(k, h, w)`; the numbers tell where they come from: joint 10, class 100 + id, spatial 1000."""
    k, h, w = counts.shape
    per_class = counts.sum((1, 2))

    def filled(count: NDArray, value: NDArray | float, spread: float) -> Gaussians:
        there = (count > 0)[:, None]
        numbers = [np.broadcast_to(np.where(there, v, 0), (len(count), 2, *count.shape[1:])) for v in (value, spread)]
        return Gaussians(torch.from_numpy(count.astype(np.int64)), *(torch.tensor(n).float() for n in numbers))

    ids = 100.0 + np.arange(k)[:, None, None, None]
    return Prior(
        filled(counts, mean, std),
        filled(per_class[:, None, None], ids, 3.0),
        filled(np.full((1, h, w), 50), 1000.0, 4.0),
    )
