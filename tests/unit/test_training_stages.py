# SPDX-License-Identifier: Apache-2.0
"""Two stages in one training: schedules begin anew, weights start from the chosen ones, a stopped run ends alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import StoppedError, data, network, same, squared_error, train
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.pairs import PairSet
from sis.data.schemas import TRAINING_LOG
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun

RECIPE = Recipe(
    steps=7, finetune_steps=5, batch_size=4, learning_rate=0.01, finetune_rate=0.002, ema=0.8, checkpoint_every=3,
    warmup=2, weight_decay=0.01,
)  # fmt: skip

Weights = dict[str, Tensor]


def changed(**changes: object) -> Recipe:
    return RECIPE.model_copy(update=changes)


def weights(net: nn.Module) -> Weights:
    return {k: v.detach().clone() for k, v in net.named_parameters()}


def equal(one: Weights, two: Weights) -> bool:
    return all(torch.equal(one[k], two[k]) for k in one)


def stages(folder: Path, recipe: Recipe) -> tuple[TrainingRun, list[Weights], list[int]]:
    """A run, the weights that each of its steps began with, and the stage of each."""
    seen: list[Weights] = []
    numbers: list[int] = []

    def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
        seen.append(weights(net))
        numbers.append(batch.stage)
        return squared_error(net, batch)

    return train(folder, recipe, loss=loss), seen, numbers


def test_rates_warm_up_and_decay_in_each_stage() -> None:
    recipe = Recipe(steps=100, finetune_steps=50, learning_rate=0.1, finetune_rate=0.02, warmup=10)
    assert [round(recipe.rate(s), 6) for s in (0, 9, 99, 100, 104, 109, 149)] == [
        0.01, 0.1, 0.1, 0.002, 0.01, 0.02, 0.02,
    ]  # fmt: skip
    cosine = Recipe(steps=100, finetune_steps=50, learning_rate=0.1, finetune_rate=0.02, decay="cosine")
    assert cosine.rate(0) == 0.1 and cosine.rate(50) == pytest.approx(0.05) and 0 < cosine.rate(99) < 1e-4
    assert cosine.rate(100) == 0.02 and cosine.rate(125) == pytest.approx(0.01) and 0 < cosine.rate(149) < 1e-4
    alone = Recipe(steps=100, learning_rate=0.1, decay="cosine")
    assert [alone.rate(s) for s in range(100)] == [cosine.rate(s) for s in range(100)]


def test_the_window_of_the_average_grows_in_each_stage() -> None:
    young = Recipe(steps=100, finetune_steps=50, ema=0.999, ema_warmup=True)
    assert young.ema_decay(0) == young.ema_decay(100) == 0.1
    assert young.ema_decay(99) == 100 / 109 and young.ema_decay(149) == 50 / 59
    assert Recipe(steps=100, finetune_steps=50, ema=0.999).ema_decay(100) == 0.999


def test_the_paper_s_recipe_is_two_stages_of_constant_rates() -> None:
    recipe = Recipe(finetune_steps=10, steps=5)
    assert [recipe.rate(s) for s in (0, 4, 5, 14)] == [1e-4, 1e-4, 2e-5, 2e-5]
    assert (recipe.ema, recipe.weight_decay, recipe.stages, recipe.total) == (0.9999, 0.0, 2, 15)
    assert (Recipe(steps=5).stages, Recipe(steps=5).total) == (1, 5)


@pytest.mark.parametrize("start", ["ema", "raw"])
def test_the_second_stage_starts_from_the_chosen_weights(tmp_path: Path, start: str) -> None:
    first = train(tmp_path / "first", changed(finetune_steps=0), net=(net := network()))
    _, seen, numbers = stages(tmp_path / "both", changed(finetune_start=start))
    assert numbers == [1] * 7 + [2] * 5
    chosen = first.average if start == "ema" else weights(net)
    assert equal(seen[7], {k: chosen[k] for k in seen[7]})
    assert not equal(weights(net), {k: first.average[k] for k in seen[7]})


@pytest.mark.parametrize("start", ["ema", "raw"])
def test_the_second_stage_has_a_fresh_optimiser_and_a_fresh_average(tmp_path: Path, start: str) -> None:
    """Its first step is that of an AdamW that has seen nothing, and its average leaves from where it begins."""
    recipe = changed(finetune_start=start, finetune_steps=1)
    run, seen, _ = stages(tmp_path, recipe)
    net = network()
    net.load_state_dict(seen[7], strict=False)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate(7), weight_decay=0.01)
    batch = TrainingRun(tmp_path, "k", 0, "cpu", "t").batch(7, data(), recipe)
    squared_error(net, batch).mean().backward()
    optimiser.step()
    for name, value in net.named_parameters():
        assert torch.equal(run.average[name], seen[7][name].lerp(value.detach(), 1 - 0.8))


def test_steps_order_and_noise_run_through_both_stages(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, "k", 0, "cpu", "t")
    one, both = Recipe(steps=12, batch_size=4), Recipe(steps=7, finetune_steps=5, batch_size=4)
    for step in range(12):
        a, b = run.batch(step, data(), one), run.batch(step, data(), both)
        assert a.image_ids == b.image_ids and a.noise.keys == b.noise.keys and torch.equal(a.images, b.images)
        assert (a.stage, b.stage) == (1, 1 if step < 7 else 2)


@pytest.mark.parametrize("stop", range(12))
@pytest.mark.parametrize("start", ["ema", "raw"])
def test_a_run_of_two_stages_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, start: str, stop: int) -> None:
    recipe = changed(finetune_start=start, ema_warmup=True, decay="cosine")
    whole = train(tmp_path / "whole", recipe)
    assert [(r["step"], r["stage"], r["images"]) for r in whole.log] == [
        (0, 1, 4),
        (6, 1, 28),
        (10, 2, 44),
        (11, 2, 48),
    ]
    with pytest.raises(StoppedError):
        train(tmp_path / "cut", recipe, stop=stop)
    assert same(train(tmp_path / "cut", recipe), whole)


def test_the_end_of_the_first_stage_has_a_state_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, RECIPE, stop=7)
    assert [p.name for p in sorted(tmp_path.glob("state-*.safetensors"))] == [
        "state-00000006.safetensors", "state-00000007.safetensors",
    ]  # fmt: skip


@pytest.fixture
def everything(tiny_pairs: Path, tmp_path: Path) -> TrainingData:
    return TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path / "decoded")


def dropped(method: Any, run: TrainingRun, data: TrainingData, steps: int) -> Iterator[tuple[int, float]]:
    """Stage and share of images without a condition, of each step."""
    conditions: list[Tensor] = []
    method.network.forward = lambda x, t, label: conditions.append(label) or torch.cat([x, x], dim=1)
    for step in range(steps):
        batch = run.batch(step, data, method.fit_params)
        method.loss(batch)
        yield batch.stage, float((conditions[-1].flatten(1).amax(1) == 0).float().mean())


def test_sdm_drops_conditions_in_the_last_stage_only(
    everything: TrainingData, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run = TrainingRun(tmp_path, "k", 0, "cpu", "t")
    shares: dict[int, dict[int, list[float]]] = {}
    for finetune_steps in (0, 6):
        fit = tiny_spec("sdm").fit | {"finetune_steps": finetune_steps, "batch_size": 24, "drop_rate": 0.3}
        method = build_method(tiny_spec("sdm", fit=fit), "cpu", None, None)
        for stage, share in dropped(method, run, everything, 6 + finetune_steps):
            shares.setdefault(finetune_steps, {}).setdefault(stage, []).append(share)
    assert list(shares[0]) == [1] and sum(shares[0][1]) / 6 == pytest.approx(0.3, abs=0.12)
    assert shares[6][1] == [0.0] * 6 and sum(shares[6][2]) / 6 == pytest.approx(0.3, abs=0.12)


def test_sdm_logs_both_parts_of_its_loss(
    everything: TrainingData, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    for learned in (True, False):
        fit = tiny_spec("sdm").fit | {"learn_sigma": learned, "steps": 2}
        sample = tiny_spec("sdm").sample | ({} if learned else {"variance": "small"})
        run = TrainingRun(tmp_path / str(learned), "k", 0, "cpu", "t")
        build_method(tiny_spec("sdm", fit=fit, sample=sample), "cpu", None, None).fit(everything, run)
        for row in run.log:
            vlb = row["vlb"] if learned else 0.0
            assert math.isclose(row["simple"] + vlb, row["loss"], rel_tol=1e-5) and row["simple"] > 0
            assert (row["vlb"] is None) != learned


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"finetune_steps": -1}, "finetune_steps"),
        ({"finetune_start": "average"}, "finetune_start"),
        ({"finetune_rates": 1e-5}, "did you mean 'finetune_rate'"),
        ({"precision": "fp8"}, "precision"),
        ({"preview_steps": 0}, "preview_steps"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(
    tiny_spec: Callable[..., RunSpec], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(SisError, match=words):
        build_method(tiny_spec("sdm", fit=given), "cpu", None, None)


def test_the_page_about_training_names_every_option_with_its_default_and_every_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = dict(re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", page.split("## Two stages")[0], re.MULTILINE))
    found = {}
    for names, defaults in table.items():
        found |= dict(zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True))
    wanted = {name: field.default for name, field in Recipe.model_fields.items()}
    assert {k: v if isinstance(wanted[k], str) else json.loads(v) for k, v in found.items()} == wanted
    columns = {name for name in TRAINING_LOG.names if not name.startswith(("sample_", "data_"))}
    assert columns <= set(re.findall(r"`(\w+)`", page)) and "`sample_mean_red` … `data_std_blue`" in page
