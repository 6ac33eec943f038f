# SPDX-License-Identifier: Apache-2.0
"""The training loop that the harness lends to a method: keyed data order and noise, averaged weights, exact resume."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import Request, TrainingData
from sis.diffusion.noise import Noise
from sis.errors import SisError, first_of
from sis.progress import Progress
from sis.training.state import StateFolder

_LOG_EVERY = 10


@dataclass(frozen=True)
class TrainBatch:
    """One step's images: images float32 `(b, 3, h, w)` in [-1, 1]; labels int64 `(b, h, w)`, void last.

    instances: int64 `(b, h, w)`, 0 for stuff; None unless the dataset's card says `edges: true`.
    """

    image_ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    instances: Tensor | None
    noise: Noise


@dataclass(frozen=True)
class _Choice:
    """Which pairs a step sees: their positions in the split, and (image id, epoch) of each."""

    indices: list[int]
    keys: tuple[tuple[str, int], ...]


@dataclass
class TrainingRun:
    """One training run of one method on one dataset.

    folder: where resumable states live (never a declared output). key: hash of everything that decides the weights.
    """

    folder: Path
    key: str
    seed: int
    device: str
    title: str
    log: list[dict] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)

    def optimise(
        self, network: nn.Module, loss: Callable[[TrainBatch], Tensor], data: TrainingData, recipe: Recipe
    ) -> None:
        """Minimise the mean of `loss` (per-image losses `(b,)`) and leave the averaged weights in `self.average`.

        A run that was killed continues from its newest state and ends with the same bits. Raises SisError when a loss
        is not finite, naming the step and the images.
        """
        network.to(self.device).train()
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        states = StateFolder(self.folder, self.key)
        first, self.log = states.resume(network, self.average, optimiser)
        seconds = self.log[-1]["seconds"] if self.log else 0.0
        with (
            Progress(f"train {self.title}", recipe.steps, "steps", done=first) as progress,
            closing(self.batches(range(first, recipe.steps), data, recipe)) as batches,
        ):
            for step in range(first, recipe.steps):
                began = time.perf_counter()
                value = self._step(step, next(batches), network, loss, recipe, optimiser)
                seconds += time.perf_counter() - began
                self._record(step, value, seconds, recipe)
                done = step + 1
                if done % recipe.checkpoint_every == 0 and done < recipe.steps:
                    states.save(done, network, self.average, optimiser, self.log)
                progress.update(1, loss=value)
        states.save(recipe.steps, network, self.average, optimiser, self.log)

    def _step(
        self,
        step: int,
        batch: TrainBatch,
        network: nn.Module,
        loss: Callable[[TrainBatch], Tensor],
        recipe: Recipe,
        optimiser: torch.optim.Optimizer,
    ) -> float:
        losses = loss(batch)
        if not bool(torch.isfinite(losses).all()):
            bad = [i for i, finite in zip(batch.image_ids, torch.isfinite(losses).tolist(), strict=True) if not finite]
            raise SisError(f"the loss is not finite at step {step}: {first_of(bad)}", where=self.title)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        optimiser.zero_grad()
        mean = losses.mean()
        mean.backward()
        optimiser.step()
        self._average(network, recipe.ema_decay(step))
        return float(mean.detach())

    @torch.no_grad()
    def _average(self, network: nn.Module, decay: float) -> None:
        current = network.state_dict()
        for name, value in current.items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def batch(self, step: int, data: TrainingData, recipe: Recipe) -> TrainBatch:
        """The batch of a step: the permutation of each epoch, every cut and every mirror follow from the seed alone."""
        choice = self._choose(step, data, recipe)
        return self._assemble(choice, data.batch(*self._request(choice, data)), data, recipe)

    def batches(self, steps: range, data: TrainingData, recipe: Recipe) -> Generator[TrainBatch, None, None]:
        """`batch` of each step, the next ones read while one is in use; close it to end the reading early."""
        chosen: deque[_Choice] = deque()

        def requests() -> Iterator[Request]:
            for step in steps:
                chosen.append(self._choose(step, data, recipe))
                yield self._request(chosen[-1], data)

        with closing(data.read_ahead(requests())) as reading:
            for raw in reading:
                yield self._assemble(chosen.popleft(), raw, data, recipe)

    def _choose(self, step: int, data: TrainingData, recipe: Recipe) -> _Choice:
        size = recipe.batch_size
        positions = np.arange(step * size, (step + 1) * size)
        epochs, offsets = positions // len(data), positions % len(data)
        indices = [self._order(int(e), len(data))[o] for e, o in zip(epochs, offsets, strict=True)]
        return _Choice(indices, tuple(zip((data.ids[i] for i in indices), epochs.tolist(), strict=True)))

    def _request(self, choice: _Choice, data: TrainingData) -> Request:
        return choice.indices, keyed_draws(Noise(self.seed, choice.keys)) if data.augmented else None

    def _assemble(self, choice: _Choice, raw: RawBatch, data: TrainingData, recipe: Recipe) -> TrainBatch:
        """What the methods see: tensors on the device, mirrored by the toss of (seed, epoch, image id)."""
        noise = Noise(self.seed, choice.keys, self.device)
        images = torch.from_numpy(raw.images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(raw.labels).to(self.device).long()
        instances = None if raw.instances is None else torch.from_numpy(raw.instances).to(self.device).long()
        if recipe.flip:
            mirrored = noise.uniform("flip", 0, ())[:, None, None] < 0.5
            becomes = torch.from_numpy(data.mirror).to(self.device).long()
            images = torch.where(mirrored[:, None], images.flip(-1), images)
            labels = torch.where(mirrored, becomes[labels.flip(-1)], labels)
            instances = None if instances is None else torch.where(mirrored, instances.flip(-1), instances)
        return TrainBatch(tuple(i for i, _ in choice.keys), images, labels, instances, noise)

    def _order(self, epoch: int, count: int) -> list[int]:
        if getattr(self, "_cached_order", (None,))[0] != (epoch, count):
            bits = Noise(self.seed, (("order", epoch),)).bits("order", 0, (count,))[0]
            self._cached_order = ((epoch, count), torch.argsort(bits, stable=True).tolist())
        return self._cached_order[1]

    def _record(self, step: int, loss: float, seconds: float, recipe: Recipe) -> None:
        if step % _LOG_EVERY == 0 or step == recipe.steps - 1:
            row = {"step": step, "loss": loss, "seconds": seconds, "images": (step + 1) * recipe.batch_size}
            self.log.append(row)


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
