# SPDX-License-Identifier: Apache-2.0
"""The training loop that the harness lends to a method: keyed data order and noise, averaged weights, exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.decoded import TrainingData
from sis.diffusion.noise import Noise
from sis.errors import SisError, first_of
from sis.progress import Progress
from sis.training.state import StateFolder

_LOG_EVERY = 10


@dataclass(frozen=True)
class TrainBatch:
    """One step's images: images float32 `(b, 3, h, w)` in [-1, 1]; labels int64 `(b, h, w)`, void last."""

    image_ids: tuple[str, ...]
    images: Tensor
    labels: Tensor
    instances: Tensor
    noise: Noise


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
        with Progress(f"train {self.title}", recipe.steps, "steps", done=first) as progress:
            for step in range(first, recipe.steps):
                began = time.perf_counter()
                value = self._step(step, network, loss, data, recipe, optimiser)
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
        network: nn.Module,
        loss: Callable[[TrainBatch], Tensor],
        data: TrainingData,
        recipe: Recipe,
        optimiser: torch.optim.Optimizer,
    ) -> float:
        batch = self.batch(step, data, recipe)
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
        """The batch of a step: the permutation of each epoch and every mirror follow from the seed alone."""
        size = recipe.batch_size
        positions = np.arange(step * size, (step + 1) * size)
        epochs, offsets = positions // len(data), positions % len(data)
        indices = np.array([self._order(int(e), len(data))[o] for e, o in zip(epochs, offsets, strict=True)])
        ids = tuple(data.ids[i] for i in indices)
        noise = Noise(self.seed, tuple(zip(ids, epochs.tolist(), strict=True)), self.device)
        images = torch.from_numpy(data.images[indices]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(data.labels[indices]).to(self.device).long()
        instances = torch.from_numpy(data.instances[indices].astype(np.int64)).to(self.device)
        if recipe.flip:
            mirrored = noise.uniform("flip", 0, ())[:, None, None] < 0.5
            images = torch.where(mirrored[:, None], images.flip(-1), images)
            labels = torch.where(mirrored, labels.flip(-1), labels)
            instances = torch.where(mirrored, instances.flip(-1), instances)
        return TrainBatch(ids, images, labels, instances, noise)

    def _order(self, epoch: int, count: int) -> list[int]:
        if getattr(self, "_cached_order", (None,))[0] != (epoch, count):
            bits = Noise(self.seed, (("order", epoch),)).bits("order", 0, (count,))[0]
            self._cached_order = ((epoch, count), torch.argsort(bits, stable=True).tolist())
        return self._cached_order[1]

    def _record(self, step: int, loss: float, seconds: float, recipe: Recipe) -> None:
        if step % _LOG_EVERY == 0 or step == recipe.steps - 1:
            row = {"step": step, "loss": loss, "seconds": seconds, "images": (step + 1) * recipe.batch_size}
            self.log.append(row)
