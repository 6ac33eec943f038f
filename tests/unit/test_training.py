# SPDX-License-Identifier: Apache-2.0
"""Training: the data order and all noise follow from the seed, and an interrupted run ends with the same bits."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sis.config.files import label_space
from sis.config.recipe import Recipe
from sis.data.manifest import read_manifest
from sis.data.policies import Draw
from sis.data.records import RawBatch, Records
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.data.tensors import load_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun
from sis.training.train import compute_prior, train_model

COUNT = 10
RECIPE = Recipe(steps=12, batch_size=4, learning_rate=0.01, ema=0.8, checkpoint_every=3, warmup=2, weight_decay=0.01)


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("sis-ahead")]


class RandomPixels:
    """Records that nothing on disk stands behind."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        batch.images[position], batch.labels[position] = self.images[index], index % 4


def data(records: Records | None = None) -> TrainingData:
    ids, space = [f"train-{i}" for i in range(COUNT)], label_space("scenes")
    return TrainingData(ids, (8, 8), space, records or RandomPixels(), instances=False, augmented=False)


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def train(
    folder: Path, *, key: str = "k", stop: int | None = None, recipe: Recipe = RECIPE, seed: int = 0
) -> TrainingRun:
    """Train to the end, or raise StoppedError in step `stop`."""
    net = network()
    steps = [0]

    def loss(batch: TrainBatch) -> Tensor:
        noise = batch.noise.normal("eps", 0, (3, 8, 8))
        steps[0] += 1
        if stop is not None and steps[0] > stop:
            raise StoppedError
        return ((net(batch.images + 0.1 * noise) - batch.images) ** 2).flatten(1).mean(1)

    run = TrainingRun(folder, key, seed, "cpu", "test")
    run.optimise(net, loss, data(), recipe)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run that nobody interrupted."""
    return train(tmp_path_factory.mktemp("whole"))


def same(one: TrainingRun, two: TrainingRun) -> bool:
    losses = [[(r["step"], r["loss"], r["images"]) for r in run.log] for run in (one, two)]
    return losses[0] == losses[1] and all(torch.equal(one.average[k], two.average[k]) for k in one.average)


@pytest.mark.parametrize("stop", range(12))
def test_a_run_stopped_anywhere_ends_with_the_same_bits(tmp_path: Path, whole: TrainingRun, stop: int) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=stop)
    assert same(train(tmp_path), whole)


def test_a_run_stopped_again_and_again_ends_with_the_same_bits(tmp_path: Path, whole: TrainingRun) -> None:
    for _ in range(3):
        with pytest.raises(StoppedError):
            train(tmp_path, stop=4)
    finished = train(tmp_path, stop=4)  # every attempt saved three more steps: the rest is less than four
    assert same(finished, whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, whole: TrainingRun) -> None:
    train(tmp_path)
    assert same(train(tmp_path, stop=0), whole)


def test_training_twice_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path, whole: TrainingRun) -> None:
    assert same(train(tmp_path / "again"), whole)
    assert not same(train(tmp_path / "seed", seed=1), whole)


@pytest.mark.parametrize("damage", ["cut", "flip", "no manifest", "empty manifest"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, whole: TrainingRun, damage: str) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=10)
    states = sorted(tmp_path.glob("state-*.safetensors"))
    assert [p.name for p in states] == ["state-00000006.safetensors", "state-00000009.safetensors"]
    newest, sidecar = states[-1], tmp_path / "state-00000009.safetensors.manifest.json"
    if damage == "cut":
        os.truncate(newest, newest.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(newest.read_bytes())
        content[-3] ^= 1
        newest.write_bytes(content)
    elif damage == "no manifest":
        sidecar.unlink()
    else:
        sidecar.write_text("")
    with pytest.raises(StoppedError):  # six steps are left, not three
        train(tmp_path, stop=5)
    assert same(train(tmp_path), whole)


def test_a_state_of_another_configuration_is_not_used(tmp_path: Path, whole: TrainingRun) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, key="other", stop=10)
    with pytest.raises(StoppedError):
        train(tmp_path, stop=11)
    assert same(train(tmp_path), whole)


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
    with pytest.raises(SisError, match=r"not finite at step \d+: train-3 \[title\]"):
        run.optimise(net, loss, data(), RECIPE)
    assert guilty


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


def test_a_trained_model_is_published_with_its_facts_and_its_log(
    tiny_model: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    manifest = read_manifest(tiny_model, "model")
    assert manifest.meta["model_id"] == tiny_spec("sdm").model_id
    assert manifest.meta["parameters"] > 0 and math.isfinite(manifest.meta["final_loss"])
    log = read_table(tiny_model.with_name("training.parquet"), TRAINING_LOG)
    assert log.column("step").to_pylist() == [0, 5] and log.column("images").to_pylist() == [4, 24]
    assert not list(tiny_model.parent.rglob("state-*"))


def test_a_published_model_loads_into_its_network(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    method = build_method(tiny_spec("sdm"), "cpu", None, None)
    load_weights(method, tiny_model)
    tensors, _ = load_tensors(tiny_model, "model")
    assert method.network is not None
    assert all(torch.equal(v, tensors[k]) for k, v in method.network.state_dict().items())


def test_weights_of_another_network_are_refused_by_name(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    other = tiny_spec("sdm")
    method = build_method(tiny_spec("sdm", fit=other.fit | {"spade_hidden": 4}), "cpu", None, None)
    with pytest.raises(SisError, match=r"do not fit the network: .*shared.*\(8, .*the network has \(4, "):
        load_weights(method, tiny_model)
    method = build_method(tiny_spec("sdm", fit=other.fit | {"conditioning": "concat"}), "cpu", None, None)
    with pytest.raises(SisError, match="do not fit the network: missing"):
        load_weights(method, tiny_model)


def test_unknown_parameters_are_answered_with_the_nearest(tiny_spec: Callable[..., RunSpec]) -> None:
    with pytest.raises(
        SisError, match=r"unknown key 'stepps'.*run sdm, fit.*did you mean 'steps'|did you mean 'steps'"
    ):
        build_method(tiny_spec("sdm", fit={"stepps": 3}), "cpu", None, None)
    with pytest.raises(SisError, match="guidance"):
        build_method(tiny_spec("sdm", sample={"guidance": 0.5}), "cpu", None, None)


def test_initial_weights_follow_from_the_training_seed(tiny_spec: Callable[..., RunSpec]) -> None:
    def first_weights(seed: int) -> Tensor:
        torch.manual_seed(99 + seed)
        method = build_method(tiny_spec("sdm", seed=seed), "cpu", None, None)
        assert method.network is not None
        return torch.cat([p.flatten() for p in method.network.parameters()])

    assert torch.equal(first_weights(3), first_weights(3))
    assert not torch.equal(first_weights(3), first_weights(4))


def test_training_on_another_split_is_refused(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(SisError, match="training needs scenes_tiny/train"):
        train_model(tiny_spec("sdm"), tiny_pairs / "val", tmp_path / "model.safetensors", "cpu")


def test_methods_that_do_not_train_or_have_no_prior_say_so(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(SisError, match="palette does not train"):
        train_model(tiny_spec("palette"), tiny_pairs / "train", tmp_path / "m.safetensors", "cpu")
    with pytest.raises(SisError, match="sdm has no prior"):
        compute_prior(tiny_spec("sdm"), tiny_pairs / "train", tmp_path / "p.safetensors", "cpu")


def test_a_finished_model_is_not_trained_again(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    first = out.stat().st_mtime_ns
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    assert out.stat().st_mtime_ns == first
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(bytes(content))
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    assert out.stat().st_mtime_ns != first and read_manifest(out, "model").artefact == "model"
