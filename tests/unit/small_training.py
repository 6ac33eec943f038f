# SPDX-License-Identifier: Apache-2.0
"""A training of milliseconds: ten pictures of 8x8 that no disk holds, a network of two layers, and a way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sis.config.files import label_space
from sis.config.recipe import Recipe
from sis.data.policies import Draw
from sis.data.records import RawBatch, Records
from sis.data.training_data import TrainingData
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun
from sis.training.train import train_model

COUNT = 10
RECIPE = Recipe(steps=12, batch_size=4, learning_rate=0.01, ema=0.8, checkpoint_every=3, warmup=2, weight_decay=0.01)

Losses = Tensor | Mapping[str, Tensor]


class StoppedError(Exception):
    """Stands for a kill."""


class RandomPixels:
    """Records that nothing on disk stands behind."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        batch.images[position], batch.labels[position] = self.images[index], index % 4


def data(records: Records | None = None) -> TrainingData:
    ids, space = [f"train-{i}" for i in range(COUNT)], label_space("scenes")
    return TrainingData(ids, (8, 8), space, records or RandomPixels(), instances=False, augmented=False)


def network(norm: nn.Module | None = None) -> nn.Module:
    """Two convolutions and a norm (batch norm unless told otherwise), always with the same first weights."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm or nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def squared_error(net: nn.Module, batch: TrainBatch) -> Tensor:
    noise = batch.noise.normal("eps", 0, (3, 8, 8))
    return ((net(batch.images + 0.1 * noise) - batch.images) ** 2).flatten(1).mean(1)


def train(
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    key: str = "k",
    stop: int | None = None,
    seed: int = 0,
    net: nn.Module | None = None,
    loss: Callable[[nn.Module, TrainBatch], Losses] = squared_error,
    **of_run: Any,
) -> TrainingRun:
    """Train to the end, or raise StoppedError in the step after `stop` steps of this attempt."""
    net = net or network()
    steps = [0]

    def counted(batch: TrainBatch) -> Losses:
        steps[0] += 1
        if stop is not None and steps[0] > stop:
            raise StoppedError
        return loss(net, batch)

    run = TrainingRun(folder, key, seed, "cpu", "title", **of_run)
    run.optimise(net, counted, data(), recipe)
    return run


def same(one: TrainingRun, two: TrainingRun) -> bool:
    """Whether two runs ended with the same bits: averaged weights, and the log but for its seconds."""
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.log] for run in (one, two)]
    return logs[0] == logs[1] and all(torch.equal(one.average[k], two.average[k]) for k in one.average)


def stop_in_step_3(spec: RunSpec, pairs: Path, out: Path) -> None:
    """Train the model of a run until the step with number 3 stops it."""
    plain = TrainingRun._step

    def stopping(run: TrainingRun, step: int, *rest: Any) -> Any:
        if step == 3:
            raise StoppedError
        return plain(run, step, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(TrainingRun, "_step", stopping)
        train_model(spec, pairs, out, "cpu")


# Fixtures: a module of tests that wants one gives it a name of its own.


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("sis-ahead")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run that nobody interrupted."""
    return train(tmp_path_factory.mktemp("whole"))
