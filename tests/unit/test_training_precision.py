# SPDX-License-Identifier: Apache-2.0
"""Micro batches, narrow types and recomputed activations: less memory, the same training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_training import StoppedError, data, network, same, squared_error, train
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun
from sis.training.precision import Precision

RECIPE = Recipe(steps=12, batch_size=6, learning_rate=0.01, ema=0.8, checkpoint_every=3)


def normed() -> nn.Module:
    return network(nn.GroupNorm(2, 4))


def changed(**changes: object) -> Recipe:
    return RECIPE.model_copy(update=changes)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 7])
def test_micro_batches_give_the_losses_of_the_whole_batch(tmp_path: Path, size: int) -> None:
    seen: list[int] = []

    def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
        seen.append(len(batch.image_ids))
        return squared_error(net, batch)

    whole = train(tmp_path / "whole", RECIPE, net=normed())
    parts = train(tmp_path / "parts", changed(micro_batch=size), net=normed(), loss=loss)
    step = [*[size] * (6 // size), *([6 % size] if 6 % size else [])]
    assert seen == step * 12
    for one, two in zip(whole.log, parts.log, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
    for name, value in whole.average.items():
        torch.testing.assert_close(parts.average[name], value, rtol=1e-4, atol=1e-6)


def test_an_image_in_a_micro_batch_has_its_own_pixels_and_noise() -> None:
    run, everything = TrainingRun(Path(), "k", 0, "cpu", "t"), data()
    for instances in (None, torch.arange(6)[:, None, None]):
        batch = dataclasses.replace(run.batch(1, everything, RECIPE), instances=instances, stage=2)
        parts = list(batch.parts(4))
        assert [len(p.image_ids) for p in parts] == [4, 2] and all(p.stage == 2 for p in parts)
        assert sum((p.image_ids for p in parts), ()) == batch.image_ids
        for name in ("images", "labels", "instances"):
            values, whole = [getattr(p, name) for p in parts], getattr(batch, name)
            assert values == [None, None] if whole is None else torch.equal(torch.cat(values), whole)
        noise = [p.noise.normal("eps", 0, (5,)) for p in parts]
        assert torch.equal(torch.cat(noise), batch.noise.normal("eps", 0, (5,)))
        assert [id(p) for p in batch.parts(0)] == [id(p) for p in batch.parts(6)] == [id(batch)]


def test_batch_norm_refuses_to_see_less_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="batch norm must see a whole batch at once - set micro_batch to 0"):
        train(tmp_path, changed(micro_batch=2))
    train(tmp_path, changed(micro_batch=6, steps=1))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_convolutions_are_narrow_but_norms_and_the_loss_are_float32(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    net, seen = normed(), {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, answer: seen.update({name: (given[0].dtype, answer.dtype)})

    for name, module in net.named_children():
        module.register_forward_hook(note(name))

    def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
        found = squared_error(net, batch)
        seen["loss"] = (found.dtype, net(batch.images).dtype)
        return found

    run = train(tmp_path, changed(precision=precision), net=net, loss=loss)
    wide = torch.float32
    assert seen["0"][1] == dtype and seen["1"] == (wide, wide) and seen["3"][1] == dtype
    assert seen["loss"] == (wide, wide)
    assert all(p.dtype == wide for p in net.parameters()) and all(v.dtype == wide for v in run.average.values())
    plain = train(tmp_path / "plain", RECIPE, net=normed())
    assert run.log[-1]["loss"] == pytest.approx(plain.log[-1]["loss"], rel=0.02)
    assert run.log[-1]["loss"] != plain.log[-1]["loss"]
    assert not net._forward_hooks and not any(m._forward_pre_hooks for m in net.modules()), "nothing is left behind"


def test_float32_touches_nothing() -> None:
    net, plain = normed(), Precision("float32", "cpu")
    assert plain.scaler is None and plain.dtype is None
    with plain.applied(net):
        assert not net._forward_hooks and not any(m._forward_pre_hooks for m in net.modules())
        with plain.narrow():
            assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_narrow_run_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, precision: str, stop: int) -> None:
    recipe = changed(precision=precision)
    whole = train(tmp_path / "whole", recipe, net=normed())
    with pytest.raises(StoppedError):
        train(tmp_path / "cut", recipe, net=normed(), stop=stop)
    assert same(train(tmp_path / "cut", recipe, net=normed()), whole)


def overflowing(steps: set[int]) -> Callable[[nn.Module, TrainBatch], Tensor]:
    """A loss whose gradient, scaled for fp16, is infinite in some of its calls."""
    count = [0]

    def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
        count[0] += 1
        found = squared_error(net, batch)
        return found * 1e38 if count[0] - 1 in steps else found

    return loss


def test_fp16_skips_a_step_without_a_finite_gradient_and_goes_on(tmp_path: Path) -> None:
    recipe = changed(precision="fp16", steps=21)
    run = train(tmp_path / "whole", recipe, net=normed(), loss=overflowing({10}))
    norms = {row["step"]: row["gradient_norm"] for row in run.log}
    assert norms[10] == math.inf and all(math.isfinite(v) for k, v in norms.items() if k != 10)
    with pytest.raises(StoppedError):
        train(tmp_path / "cut", recipe, net=normed(), loss=overflowing({10}), stop=13)
    again = train(tmp_path / "cut", recipe, net=normed(), loss=overflowing(set()))
    assert same(again, run)
    # A scale is a power of two, so only its state tells that it is another.
    scales = [
        load_tensors(tmp_path / name / "state-00000021.safetensors", "model")[1]["scaler"]["scale"]
        for name in ("whole", "cut")
    ]
    assert scales == [32768.0, 32768.0]


def test_a_skipped_step_changes_neither_weights_nor_average(tmp_path: Path) -> None:
    runs, nets = [], []
    for steps, bad in ((2, set()), (3, {2})):
        recipe = changed(precision="fp16", steps=steps)
        nets.append(normed())
        runs.append(train(tmp_path / str(steps), recipe, net=nets[-1], loss=overflowing(bad)))
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in nets), strict=True))
    assert all(torch.equal(v, runs[1].average[k]) for k, v in runs[0].average.items())
    assert any(not torch.equal(v, nets[0].state_dict()[k]) for k, v in runs[0].average.items())


def test_fp16_gives_up_after_twenty_skipped_steps_in_a_row_also_across_a_resume(tmp_path: Path) -> None:
    recipe, always = changed(precision="fp16", steps=40), set(range(100))
    words = "not finite in 20 steps in a row, 19 the last .* use precision bf16 or float32"
    with pytest.raises(SisError, match=words):
        train(tmp_path / "one", recipe, net=normed(), loss=overflowing(always))
    with pytest.raises(StoppedError):
        train(tmp_path / "two", recipe, net=normed(), loss=overflowing(always), stop=10)
    with pytest.raises(SisError, match=words):
        train(tmp_path / "two", recipe, net=normed(), loss=overflowing(always))
    run = train(tmp_path / "three", recipe, net=normed(), loss=overflowing(set(range(19)) | set(range(20, 39))))
    assert run.log[-1]["step"] == 39, "nineteen in a row are allowed"


def test_a_loss_that_fp16_cannot_hold_says_which_type_can(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"loss is not finite at step 0: .* - try precision bf16 or float32"):
        train(tmp_path, changed(precision="fp16"), net=normed(), loss=lambda net, b: squared_error(net, b) * math.inf)


def test_recomputed_activations_give_the_same_bits(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    everything = TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path / "decoded")
    runs, switched = [], []
    for on in (False, True):
        spec = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"checkpointing": on})
        method, run = build_method(spec, "cpu", None, None), TrainingRun(tmp_path / str(on), "k", 0, "cpu", "t")
        method.fit(everything, run)
        runs.append(run)
        switched.append(method.network.checkpointing)
    assert switched == [False, True] and same(*runs)


def test_a_network_that_cannot_recompute_says_so(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="network has no checkpointing - set checkpointing to false"):
        train(tmp_path, changed(checkpointing=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sdm_trains_in_narrow_types(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, precision: str
) -> None:
    everything, losses = TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path / "decoded"), []
    for name in ("float32", precision):
        fit = tiny_spec("sdm").fit | {
            "precision": name,
            "steps": 4,
            "batch_size": 2,
            "micro_batch": 1,
            "checkpointing": True,
        }
        method = build_method(tiny_spec("sdm", fit=fit), "cpu", None, None)
        run = TrainingRun(tmp_path / name, "k", 0, "cpu", "t")
        method.fit(everything, run)
        losses.append(run.log[-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
