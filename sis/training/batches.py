# SPDX-License-Identifier: Apache-2.0
"""What each training step sees: order, cuts, mirrors and noise follow from the seed, the step and the image ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import Request, TrainingData
from sis.diffusion.noise import Noise


@dataclass(frozen=True)
class TrainBatch:
    """One step's images: images float32 `(b, 3, h, w)` in [-1, 1]; labels int64 `(b, h, w)`, void last.

    instances: int64 `(b, h, w)`, 0 for stuff; None unless the dataset's card says `edges: true`. stage: 1, or 2 in
    the second stage of a training that has one.
    """

    image_ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    instances: Tensor | None
    noise: Noise
    stage: int = 1

    def parts(self, size: int) -> Iterator[TrainBatch]:
        """The batch in pieces of `size` images, the last one perhaps smaller; 0 gives it as it is.

        An image has the same noise in a piece as in the whole.
        """
        count = len(self.image_ids)
        if not 0 < size < count:
            yield self
            return
        for i in range(0, count, size):
            cut = slice(i, i + size)
            instances = None if self.instances is None else self.instances[cut]
            noise = replace(self.noise, keys=self.noise.keys[cut])
            yield TrainBatch(
                self.image_ids[cut], self.images[cut], self.labels[cut], instances, noise, self.stage
            )  # fmt: skip


@dataclass(frozen=True)
class _Choice:
    """Which pairs a step sees: their positions in the split, and (image id, epoch) of each."""

    step: int
    indices: list[int]
    keys: tuple[tuple[str, int], ...]


class Batches:
    """The batches of one training, or the part of each that one of several processes works on."""

    def __init__(
        self, data: TrainingData, recipe: Recipe, seed: int, device: str, part: tuple[int, int] = (0, 1)
    ) -> None:
        """part: (which, of how many) equal parts of each batch; `recipe.batch_size` must be divisible."""
        self.data, self.recipe, self.seed, self.device = data, recipe, seed, device
        share = recipe.batch_size // part[1]
        self._own = slice(part[0] * share, (part[0] + 1) * share)
        self._permuted: tuple[int, list[int]] | None = None

    def image_ids(self, step: int) -> list[str]:
        """The images of a step, of all processes."""
        return [self.data.ids[i] for i in self._choose(step, slice(None)).indices]

    def of(self, step: int) -> TrainBatch:
        """The batch of a step: the permutation of each epoch, every cut and every mirror follow from the seed alone."""
        choice = self._choose(step, self._own)
        return self._assemble(choice, self.data.batch(*self._request(choice)))

    def ahead(self, steps: range) -> Generator[TrainBatch, None, None]:
        """`of` each step, the next ones read while one is in use; close it to end the reading early."""
        chosen: deque[_Choice] = deque()

        def requests() -> Iterator[Request]:
            for step in steps:
                chosen.append(self._choose(step, self._own))
                yield self._request(chosen[-1])

        with closing(self.data.read_ahead(requests())) as reading:
            for raw in reading:
                yield self._assemble(chosen.popleft(), raw)

    def _choose(self, step: int, part: slice) -> _Choice:
        size = self.recipe.batch_size
        positions = np.arange(step * size, (step + 1) * size)[part]
        epochs, offsets = positions // len(self.data), positions % len(self.data)
        indices = [self._order(int(e))[o] for e, o in zip(epochs, offsets, strict=True)]
        return _Choice(step, indices, tuple(zip((self.data.ids[i] for i in indices), epochs.tolist(), strict=True)))

    def _order(self, epoch: int) -> list[int]:
        if self._permuted is None or self._permuted[0] != epoch:
            bits = Noise(self.seed, (("order", epoch),)).bits("order", 0, (len(self.data),))[0]
            self._permuted = epoch, torch.argsort(bits, stable=True).tolist()
        return self._permuted[1]

    def _request(self, choice: _Choice) -> Request:
        return choice.indices, keyed_draws(Noise(self.seed, choice.keys)) if self.data.augmented else None

    def _assemble(self, choice: _Choice, raw: RawBatch) -> TrainBatch:
        """What the methods see: tensors on the device, mirrored by the toss of (seed, epoch, image id)."""
        noise = Noise(self.seed, choice.keys, self.device)
        images = torch.from_numpy(raw.images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(raw.labels).to(self.device).long()
        instances = None if raw.instances is None else torch.from_numpy(raw.instances).to(self.device).long()
        if self.recipe.flip:
            mirrored = noise.uniform("flip", 0, ())[:, None, None] < 0.5
            becomes = torch.from_numpy(self.data.mirror).to(self.device).long()
            images = torch.where(mirrored[:, None], images.flip(-1), images)
            labels = torch.where(mirrored, becomes[labels.flip(-1)], labels)
            instances = None if instances is None else torch.where(mirrored, instances.flip(-1), instances)
        ids = tuple(i for i, _ in choice.keys)
        return TrainBatch(ids, images, labels, instances, noise, self.recipe.stage(choice.step))


def keyed_draws(noise: Noise) -> list[Draw]:
    """For each stream of `noise` the `draw(purpose, low, high)` of preparation policies: whole numbers, all alike.

    The number is low + floor(bits (high - low) / 2^32) with the stream's 32 bits of that purpose (step 0), so that it
    does not depend on what else is drawn, nor in which order.
    """
    drawn: dict[str, list[int]] = {}

    def draw(position: int, purpose: str, low: int, high: int) -> int:
        if purpose not in drawn:  # two threads may both draw it: the same bits
            drawn[purpose] = noise.bits(purpose, 0, ()).tolist()
        return low + ((drawn[purpose][position] * (high - low)) >> 32)

    return [partial(draw, position) for position in range(len(noise.keys))]
