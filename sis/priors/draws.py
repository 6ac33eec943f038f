# SPDX-License-Identifier: Apache-2.0
"""Which training images the prior's statistics see, how often, and which of their tokens."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sis.data.manifest import stable_hash
from sis.errors import SisError
from sis.priors.params import StatisticsParams

#: The released joint prior reads images i, i + 64, i + 128, ... for i in 0..15: one for each process, a batch apart.
RELEASED_STRIDE, RELEASED_PARTS = 64, 16


@dataclass(frozen=True)
class Draws:
    """The images of a prior, as positions in the split.

    images: every visit, repeats included; in the order of the released code, which matters for its tokens, else sorted.
    joint: the images of the released joint prior; None where the joint prior sees `images`, as in the paper.
    population: images of the split. seed: of the released stream of random numbers.
    """

    images: tuple[int, ...]
    population: int
    joint: tuple[int, ...] | None = None
    seed: int = 0

    def shard(self, index: int, count: int) -> Draws:
        """Part `index` of `count`, for one job of several. Raises SisError where the draw cannot be cut."""
        if not 0 <= index < count:
            raise SisError(f"there is no shard {index} of {count}", fix=f"shards are 0..{count - 1}")
        if count > 1 and self.joint is not None:
            raise SisError(
                "the released statistics pick their tokens from one stream of random numbers: they are one job",
                fix="use one shard, or fidelity: paper",
            )
        if count == 1:
            return self
        seen = self.counted()  # all visits of an image stay together
        first, last = (len(seen) * i // count for i in (index, index + 1))
        return Draws(tuple(i for i, times in seen[first:last] for _ in range(times)), self.population)

    def counted(self) -> list[tuple[int, int]]:
        """(image, visits) sorted by image."""
        return sorted(Counter(self.images).items())

    def digest(self, ids: Sequence[str]) -> str:
        """A hash of the visited image ids, the same for every order of the split."""
        visits = sorted(ids[i] for i in self.images)
        return stable_hash([visits, sorted(ids[i] for i in self.joint or ())], 16)

    def picker(self) -> TokenPicker:
        """The tokens of the released categorical prior, from the stream of numbers that drew the images."""
        stream = random.Random(self.seed)
        stream.choices(range(self.population), k=len(self.images))
        return TokenPicker(stream)


def drawn(ids: Sequence[str], params: StatisticsParams) -> Draws:
    """The draw that the parameters describe. Keyed by image id: it does not depend on the order of the split.

    ids: of all images of the training split. Raises SisError for an empty split.
    """
    if not ids:
        raise SisError("a prior needs training images, the split is empty")
    if params.fidelity == "release":
        return released(len(ids), params.n_images, params.seed)
    by_name = sorted(range(len(ids)), key=lambda i: ids[i])
    if params.draw == "replacement":
        random_index = _keyed(params.seed, params.n_images, len(ids))
        return Draws(tuple(sorted(by_name[i] for i in random_index)), len(ids))
    if params.n_images >= len(ids):
        return Draws(tuple(range(len(ids))), len(ids))
    rank = sorted(by_name, key=lambda i: stable_hash(["prior", params.seed, ids[i]], 32))
    return Draws(tuple(sorted(rank[: params.n_images])), len(ids))


def released(
    count: int, n_images: int, seed: int = 42, stride: int = RELEASED_STRIDE, parts: int = RELEASED_PARTS
) -> Draws:
    """The draw of the released code (AIR-DISCOVER/SCP-Diff-Toolkit @859f671) from a split of `count` images.

    With replacement from Python's own generator; the joint prior does not see the draw but images i, i + stride, ...
    for i in 0..parts-1, a quarter of the split.
    """
    images = random.Random(seed).choices(range(count), k=n_images)
    joint = sorted(i for start in range(parts) for i in range(start, count, stride))
    return Draws(tuple(images), count, tuple(joint), seed)


class TokenPicker:
    """One random token for each class of each image, as the released categorical prior takes them."""

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def pick(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The tokens of the next image, `(h, w)`: in the order of class ids, among positions in row-major order."""
        flat = labels.reshape(-1)
        chosen = np.zeros(flat.shape, bool)
        for class_id in np.unique(flat):
            where = np.flatnonzero(flat == class_id)
            chosen[where[self._stream.randint(0, len(where) - 1)]] = True
        return chosen.reshape(labels.shape)


def _keyed(seed: int, draws: int, high: int) -> NDArray[np.int64]:
    """Uniform integers in [0, high), one a draw, the same on every machine."""
    from sis.diffusion.noise import Noise

    return Noise(seed, (("prior", 0),)).integers("images", 0, (draws,), high)[0].numpy()
