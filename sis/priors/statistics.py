# SPDX-License-Identifier: Apache-2.0
"""The statistics behind a prior, accumulated over the images of a draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sis.errors import SisError
from sis.priors.accumulator import Accumulator, as_array
from sis.priors.draws import Draws
from sis.priors.labels import latent_labels

#: Visits that are read together.
_BATCH = 16


class Encoded(NamedTuple):
    """Training images as latents, numpy or torch: mean and std `(b, c, h, w)`, label maps `(b, H, W)` of any size."""

    mean: Any
    std: Any
    labels: Any


#: Gives the training images at some positions of the split.
Reader = Callable[[Sequence[int]], Encoded]


@dataclass(frozen=True)
class Statistics:
    """What a prior is made of.

    joint: for each class and position. The paper's other two priors follow from it; the released ones come from other
    images and tokens, and stand in `classes` and `positions`.
    """

    joint: Accumulator
    classes: Accumulator | None = None
    positions: Accumulator | None = None

    @property
    def categorical(self) -> Accumulator:
        """For each class (Eq. 7)."""
        return (self.classes or self.joint).over_positions()

    @property
    def spatial(self) -> Accumulator:
        """For each position (Eq. 5)."""
        return (self.positions or self.joint).over_classes()

    def merge(self, other: Statistics) -> Statistics:
        """Both together. Raises SisError when their cells differ or only one is of the released kind."""
        parts = []
        for one, two in ((self.classes, other.classes), (self.positions, other.positions)):
            if (one is None) != (two is None):
                raise SisError("statistics of the paper and of the released code cannot be merged")
            parts.append(one.merge(two) if one is not None and two is not None else None)
        return Statistics(self.joint.merge(other.joint), *parts)


def accumulate(
    read: Reader,
    ids: Sequence[str],
    draws: Draws,
    classes: int,
    *,
    latents: Literal["mode", "sample"] = "mode",
    seed: int = 0,
    batch: int = _BATCH,
) -> Statistics:
    """Accumulate the statistics of a draw (or of a shard of it).

    Args:
        read: called with positions in the split, a few at a time.
        ids: image ids of the split; they key the noise of `sample`.
        draws: what `draws.drawn` or `draws.released` gave.
        classes: label ids are 0..classes-1.
        latents: `mode` takes the posterior's mean, `sample` mean + std * eps with eps keyed by seed, image and visit.

    Raises SisError for an empty draw, latents that are not finite and label ids out of range.
    """
    if not draws.images:
        raise SisError("no images to compute a prior from", fix="use fewer shards or more images")
    visits = _Visits(read, ids, latents, seed, batch)
    if draws.joint is None:
        return Statistics(_gathered(visits.of([(i, range(times)) for i, times in draws.counted()]), classes))
    picker, picked, positions = draws.picker(), None, None
    for x, labels in visits.of(_one_by_one(draws.images)):
        picked = picked or _empty_for(x, classes)
        positions = positions or _empty_for(x, 1)
        picked.add(x, labels, np.stack([picker.pick(one) for one in labels]))
        positions.add(x, np.zeros_like(labels))
    return Statistics(_gathered(visits.of(_one_by_one(draws.joint)), classes), picked, positions)


def _one_by_one(images: Sequence[int]) -> list[tuple[int, range]]:
    """Every visit by itself, in this order, with how often its image was visited before."""
    before: Counter[int] = Counter()
    visits = []
    for image in images:
        visits.append((image, range(before[image], before[image] + 1)))
        before[image] += 1
    return visits


def _gathered(batches: Iterator[tuple[NDArray, NDArray[np.int64]]], classes: int) -> Accumulator:
    found = None
    for x, labels in batches:
        found = found or _empty_for(x, classes)
        found.add(x, labels)
    assert found is not None, "a draw holds images"
    return found


def _empty_for(x: NDArray, classes: int) -> Accumulator:
    return Accumulator(classes, x.shape[1], (x.shape[2], x.shape[3]))


@dataclass(frozen=True)
class _Visits:
    """Reads the visited images a few at a time."""

    read: Reader
    ids: Sequence[str]
    latents: str
    seed: int
    batch: int

    def of(self, visits: list[tuple[int, range]]) -> Iterator[tuple[NDArray, NDArray[np.int64]]]:
        """Latents `(b, c, h, w)` and their labels `(b, h, w)` of (image, numbers of its visits)."""
        for start in range(0, len(visits), self.batch):
            part = visits[start : start + self.batch]
            found = self.read([image for image, _ in part])
            mean = as_array(found.mean)
            labels = latent_labels(found.labels, (mean.shape[2], mean.shape[3]))
            for turn in range(max(len(numbers) for _, numbers in part)):
                rows = [row for row, (_, numbers) in enumerate(part) if turn < len(numbers)]
                keys = [(self.ids[part[row][0]], part[row][1][turn]) for row in rows]
                yield self._drawn(mean[rows], found.std, rows, keys), labels[rows]

    def _drawn(self, mean: NDArray, std: Any, rows: list[int], keys: list[tuple[str, int]]) -> NDArray:
        if self.latents == "mode":
            return mean
        from sis.diffusion.noise import Noise

        eps = Noise(self.seed, tuple(keys)).normal("posterior", 0, mean.shape[1:]).numpy()
        return mean + as_array(std)[rows] * eps
