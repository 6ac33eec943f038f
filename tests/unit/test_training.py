# SPDX-License-Identifier: Apache-2.0
"""The loop of training: rates, averages and losses are what plain formulas say, and what goes wrong is named."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import small_training
import torch
from small_training import RECIPE, StoppedError, data, network, same, squared_error, train
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.pairs import PairSet
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun

no_thread_is_left = small_training.no_thread_is_left
whole = small_training.whole


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_image(tmp_path: Path, bad: float) -> None:
    net = network()
    guilty: list[str] = []

    def loss(batch: TrainBatch) -> Tensor:
        losses = net(batch.images).flatten(1).mean(1)
        if "train-3" in batch.image_ids:
            guilty.append("train-3")
            spoil = torch.tensor([bad if i == "train-3" else 0.0 for i in batch.image_ids])
            return losses + spoil
        return losses

    run = TrainingRun(tmp_path, "k", 0, "cpu", "title")
    with pytest.raises(SisError, match=r"the loss is not finite at step \d+: train-3 \[title\]"):
        run.optimise(net, loss, data(), RECIPE)
    assert guilty


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    net = network()

    def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
        # The root of zero: a finite loss whose gradient is not.
        return squared_error(net, batch) + (net[0].weight[0, 0, 0, 0] * 0).abs().sqrt()

    with pytest.raises(SisError, match=r"the gradient is not finite at step 0: train-\d, .*lower the learning rate"):
        train(tmp_path, net=net, loss=loss)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), network().parameters(), strict=True))


@pytest.mark.parametrize("checkpointing", [None, False, True])
@pytest.mark.parametrize("micro", [0, 3, 1])
def test_an_exhausted_memory_names_what_to_change_and_changes_nothing(
    tmp_path: Path, micro: int, checkpointing: bool | None
) -> None:
    fits = 0 if micro == 1 else 2

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 1)
            if checkpointing is not None:
                self.checkpointing = False

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > fits:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
            return self.inner(x)

    recipe = Recipe(steps=2, batch_size=8, micro_batch=micro, checkpointing=bool(checkpointing))
    wanted = "set micro_batch to 2, the largest that fits" if fits else ""
    wanted += ", or " if fits and checkpointing is False else ""
    wanted += "set checkpointing to true" if checkpointing is False else ""
    with pytest.raises(SisError) as caught:
        train(tmp_path, recipe=recipe, net=Narrow(), loss=squared_error)
    assert caught.value.what == f"out of memory at step 0: {micro or 8} images of 8x8 go through the network together"
    assert caught.value.fix == (wanted or "use a narrower precision, smaller images or more memory")


def test_other_errors_of_torch_keep_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size"):
        train(tmp_path, loss=lambda net, batch: net(batch.images[:, :2]))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda net, batch: squared_error(net, batch).mean(), r"one number an image, \(4,\), this one is \(\)"),
        (lambda net, batch: {"simpel": squared_error(net, batch)}, "no part 'simpel' - did you mean 'simple'"),
    ],
)
def test_a_loss_of_another_form_is_refused(tmp_path: Path, loss: Callable, words: str) -> None:
    with pytest.raises(SisError, match=words):
        train(tmp_path, loss=loss)


def test_named_parts_of_a_loss_are_summed_and_logged(tmp_path: Path, whole: TrainingRun) -> None:
    def halves(net: nn.Module, batch: TrainBatch) -> dict[str, Tensor]:
        whole = squared_error(net, batch)
        return {"simple": 0.75 * whole, "vlb": 0.25 * whole}

    run = train(tmp_path, loss=halves)
    for row, plain in zip(run.log, whole.log, strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert row["simple"] == pytest.approx(0.75 * row["loss"]) and row["vlb"] == pytest.approx(0.25 * row["loss"])
        assert plain["simple"] is None and plain["vlb"] is None
        assert row["learning_rate"] == RECIPE.rate(row["step"]) and 0 < row["gradient_norm"] < 100
    assert same(train(tmp_path), run), "the finished state keeps the log"


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt])
def test_no_thread_outlives_a_run_that_ends_badly(tmp_path: Path, error: type[BaseException]) -> None:
    def loss(batch: TrainBatch) -> Tensor:
        assert [t for t in threading.enumerate() if t.name.startswith("sis-ahead")]
        raise error

    with pytest.raises(error):
        TrainingRun(tmp_path, "k", 0, "cpu", "t").optimise(network(), loss, data(), RECIPE)


def test_a_pair_that_cannot_be_read_ends_the_training_with_its_own_words(tmp_path: Path) -> None:
    class Torn:
        def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
            raise SisError("pixels differ", where="train-7")

    with pytest.raises(SisError, match=r"pixels differ \[train-7\]"):
        TrainingRun(tmp_path, "k", 0, "cpu", "t").optimise(network(), lambda b: b.images, data(Torn()), RECIPE)


def test_learning_rate_warms_up_and_decays() -> None:
    warm = Recipe(steps=100, learning_rate=0.1, warmup=10)
    assert [round(warm.rate(s), 6) for s in (0, 4, 9, 50)] == [0.01, 0.05, 0.1, 0.1]
    cosine = Recipe(steps=100, learning_rate=0.1, decay="cosine")
    assert cosine.rate(0) == 0.1 and cosine.rate(50) == pytest.approx(0.05) and 0 < cosine.rate(99) < 1e-4


def test_the_average_starts_young_only_when_asked() -> None:
    assert Recipe(ema=0.999).ema_decay(0) == 0.999
    young = Recipe(ema=0.999, ema_warmup=True)
    assert young.ema_decay(0) == 0.1 and young.ema_decay(10**6) == 0.999


def test_default_training_is_the_plain_loop_bit_for_bit(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """What everything else in these files must not change: AdamW on the mean loss, an average after every step."""
    fit = tiny_spec("sdm").fit | {"warmup": 2, "decay": "cosine", "weight_decay": 0.01, "ema_warmup": True}
    spec = tiny_spec("sdm", fit=fit)
    everything = TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path / "decoded")
    run, trained = TrainingRun(tmp_path / "work", "k", 0, "cpu", "t"), build_method(spec, "cpu", None, None)
    trained.fit(everything, run)

    method = build_method(spec, "cpu", None, None)
    recipe, net = method.fit_params, method.network.train()
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    for step in range(recipe.steps):
        loss = method.loss(run.batch(step, everything, recipe))
        losses = loss if isinstance(loss, Tensor) else sum(loss.values())
        warm = min(1.0, (step + 1) / 2)
        optimiser.param_groups[0]["lr"] = 0.001 * warm * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        with torch.no_grad():
            for name, value in net.state_dict().items():
                average[name].lerp_(value, 1 - min(0.5, (1 + step) / (10 + step)))
    assert all(torch.equal(run.average[k], average[k]) for k in average)
    assert all(torch.equal(a, b) for a, b in zip(trained.network.parameters(), net.parameters(), strict=True))


def test_the_average_of_weights_is_exponential(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    seen: list[float] = []

    def loss(batch: TrainBatch) -> Tensor:
        seen.append(net.weight.item())
        return (net.weight.flatten() - 1) ** 2 + 0 * batch.images.flatten(1).mean(1)

    run = TrainingRun(tmp_path, "k", 0, "cpu", "t")
    run.optimise(net, loss, data(), Recipe(steps=3, batch_size=2, learning_rate=0.1, ema=0.5))
    weights = [*seen, net.weight.item()]
    expected = 0.0
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert run.average["weight"].item() == pytest.approx(expected, rel=1e-5)
