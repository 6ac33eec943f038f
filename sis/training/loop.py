# SPDX-License-Identifier: Apache-2.0
"""The training loop that the harness lends to a method: keyed data order and noise, averaged weights, exact resume."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.training_data import TrainingData
from sis.notice import NEVER, Notice, Stopped
from sis.progress import Progress
from sis.training import log as training_log
from sis.training.batches import Batches, TrainBatch, keyed_draws
from sis.training.learner import Learned, Learner, Loss
from sis.training.monitor import Monitor, Sampler
from sis.training.ranks import ALONE, Ranks
from sis.training.state import State, StateFolder

__all__ = ["TrainBatch", "TrainingRun", "keyed_draws"]


@dataclass
class TrainingRun:
    """One training run of one method on one dataset.

    folder: where resumable states live (never a declared output). key: hash of everything that decides the weights.
    made_of: what went into the key, for messages. config: goes into every state file. resume_other: go on from a state
    of other code, another device or number of processes. ranks: the processes that work together. sampler: draws
    pictures of the training into the folder `previews`; without it there are none. notice: looked at between steps.
    """

    folder: Path
    key: str
    seed: int
    device: str
    title: str
    made_of: dict[str, str] = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    resume_other: bool = False
    ranks: Ranks = ALONE
    sampler: Sampler | None = None
    #: Takes the steps done and the averaged weights of every step in the recipe's `keep`.
    keep: Callable[[int, dict[str, Tensor]], None] | None = None
    previews: Path = Path("previews")
    notice: Notice = NEVER
    log: list[dict] = field(default_factory=list)
    average: dict[str, Tensor] = field(default_factory=dict)
    #: Where this training went on from a state of something else: the step, and what was different.
    resumed: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def optimise(self, network: nn.Module, loss: Loss, data: TrainingData, recipe: Recipe) -> None:
        """Minimise the mean of `loss` (see `Loss`) and leave the averaged weights in `self.average`.

        The network keeps the raw weights. A run that was killed continues from its newest state and ends with the same
        bits. Raises SisError when a loss or gradient is not finite, naming the step and the images, and Stopped behind
        a state of its last step when it was told to stop.
        """
        learner = Learner(network, loss, recipe, self.device, self.ranks, self.title)
        states = StateFolder(self.folder, self.key, self.made_of, self.resume_other)
        first = self._resume(learner, states)
        monitor = self._monitor(data, recipe, fresh=first == 0)
        stream = None if self.ranks.first else io.StringIO()
        with (
            learner.applied(),
            Progress(f"train {self.title}", recipe.total, "steps", done=first, stream=stream) as progress,
            closing(self.batches(range(first, recipe.total), data, recipe)) as batches,
        ):
            ids = Batches(data, recipe, self.seed, self.device)
            for step in range(first, recipe.total):
                if step == recipe.steps:
                    learner.begin_second_stage()
                began = time.perf_counter()
                learned = self._step(step, next(batches), learner, ids)
                self.seconds += time.perf_counter() - began
                self._afterwards(step, learned, learner, monitor, recipe)
                stop, urgent = self.ranks.any(self.notice.given, self.notice.urgent)
                ends, stop = step + 1 in (recipe.steps, recipe.total), stop and step + 1 < recipe.total
                if stop or urgent or ends or (step + 1) % recipe.checkpoint_every == 0:
                    self._save(step + 1, learner, states)
                    self.notice.saved()
                progress.update(1, loss=learned.loss, **(monitor.shown() if monitor else {}))
                if stop:
                    raise Stopped
        self.average = learner.average
        if monitor:
            monitor.finish()

    def batch(self, step: int, data: TrainingData, recipe: Recipe) -> TrainBatch:
        """This process' part of the batch of a step."""
        return self._batches(data, recipe).of(step)

    def batches(self, steps: range, data: TrainingData, recipe: Recipe) -> Generator[TrainBatch, None, None]:
        """`batch` of each step, the next ones read while one is in use; close it to end the reading early."""
        return self._batches(data, recipe).ahead(steps)

    def _batches(self, data: TrainingData, recipe: Recipe) -> Batches:
        return Batches(data, recipe, self.seed, self.device, (self.ranks.rank, self.ranks.count))

    def _step(self, step: int, batch: TrainBatch, learner: Learner, everyone: Batches) -> Learned:
        return learner.step(step, batch, lambda: everyone.image_ids(step))

    def _afterwards(
        self, step: int, learned: Learned, learner: Learner, monitor: Monitor | None, recipe: Recipe
    ) -> None:
        """Draw the picture of a step that has one, and write the step down."""
        if self.keep and self.ranks.first and step + 1 in recipe.keep:
            self.keep(step + 1, learner.average)
        pictures = monitor.look(step + 1, learner.average) if monitor and monitor.due(step + 1) else {}
        if pictures or training_log.is_logged(step, recipe):
            self.log.append(training_log.row(step, recipe, learned, self.seconds, pictures))

    def _save(self, done: int, learner: Learner, states: StateFolder) -> None:
        tensors, numbers = learner.state()
        self.ranks.check_same(tensors)
        if self.ranks.first:
            numbers |= {"seconds": self.seconds, "resumed": self.resumed}
            states.save(State(done, tensors | training_log.to_tensors(self.log), numbers), self.config)
            training_log.write(self.log, self.folder / "training.parquet", {"step": done})

    def _resume(self, learner: Learner, states: StateFolder) -> int:
        """Restore the newest state, which the first process reads; returns the steps that are done."""
        found, other = (states.newest() if self.ranks.first else None) or (State(0, {}, {}), [])
        meta = self.ranks.share(found.meta)
        state = State(meta.get("step", 0), self.ranks.spread(found.tensors), meta)
        self.log, self.seconds, self.resumed = [], 0.0, []
        if state.step:
            learner.restore(state)
            self.log = training_log.from_tensors(state.under("log."))
            self.seconds = meta["seconds"]
            self.resumed = meta["resumed"] + ([{"step": state.step, "other": other}] if other else [])
        return state.step

    def _monitor(self, data: TrainingData, recipe: Recipe, fresh: bool) -> Monitor | None:
        if not (recipe.preview_every and self.sampler and self.ranks.first):
            return None
        monitor = Monitor(self.previews, data, recipe, self.seed, self.device, self.sampler)
        if fresh:
            monitor.start()
        return monitor
