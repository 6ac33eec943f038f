# SPDX-License-Identifier: Apache-2.0
"""Training: the data order and all noise follow from the seed, and an interrupted run ends with the same bits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.decoded import TrainingData
from sis.data.manifest import read_manifest
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.plan import RunSpec
from sis.training.loop import TrainBatch, TrainingRun
from sis.training.train import compute_prior, train_model

COUNT = 10
RECIPE = Recipe(steps=12, batch_size=4, learning_rate=0.01, ema=0.8, checkpoint_every=3, warmup=2, weight_decay=0.01)


class StoppedError(Exception):
    """Stands for a kill."""


def data() -> TrainingData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, (COUNT, 8, 8), dtype=np.uint8)
    return TrainingData([f"train-{i}" for i in range(COUNT)], images, labels, labels.astype(np.uint16) * 1000)


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


def batches(recipe: Recipe, seed: int = 0) -> list[TrainBatch]:
    run, everything = TrainingRun(Path(), "k", seed, "cpu", "t"), data()
    return [run.batch(step, everything, recipe) for step in range(COUNT)]


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    ids = [i for b in batches(Recipe(batch_size=4)) for i in b.image_ids]
    epochs = [ids[k * COUNT : (k + 1) * COUNT] for k in range(4)]
    assert all(sorted(e) == sorted(data().ids) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    run, everything = TrainingRun(Path(), "k", 0, "cpu", "t"), data()
    forwards = batches(Recipe(batch_size=4))
    backwards = [run.batch(step, everything, Recipe(batch_size=4)) for step in reversed(range(COUNT))][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one.image_ids == two.image_ids and torch.equal(one.images, two.images)
    assert [b.image_ids for b in batches(Recipe(batch_size=4), seed=1)] != [b.image_ids for b in forwards]


def test_an_image_is_mirrored_alike_wherever_it_stands_in_a_batch() -> None:
    def first_epoch(size: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for batch in batches(Recipe(batch_size=size)):
            for image_id, image in zip(batch.image_ids, batch.images, strict=True):
                found.setdefault(image_id, image)
        return found

    two, five = first_epoch(2), first_epoch(5)
    assert all(torch.equal(two[i], five[i]) for i in data().ids)


def test_image_label_and_instances_are_mirrored_together() -> None:
    everything = data()
    mirrored = plain = 0
    for batch in batches(Recipe(batch_size=4)):
        for k, image_id in enumerate(batch.image_ids):
            i = everything.ids.index(image_id)
            image = torch.from_numpy(everything.images[i]).permute(2, 0, 1).float() / 127.5 - 1
            label = torch.from_numpy(everything.labels[i]).long()
            flipped = torch.equal(batch.images[k], image.flip(-1))
            assert flipped or torch.equal(batch.images[k], image)
            expected = label.flip(-1) if flipped else label
            assert torch.equal(batch.labels[k], expected)
            assert torch.equal(batch.instances[k], expected * 1000)
            mirrored, plain = mirrored + flipped, plain + (not flipped)
    assert mirrored > 5 and plain > 5


def test_nothing_is_mirrored_without_flip() -> None:
    everything = data()
    for batch in batches(Recipe(batch_size=3, flip=False)):
        wanted = np.stack([everything.images[everything.ids.index(i)] for i in batch.image_ids])
        assert torch.equal(batch.images, torch.from_numpy(wanted).permute(0, 3, 1, 2).float() / 127.5 - 1)


def test_noise_of_an_image_differs_from_epoch_to_epoch() -> None:
    drawn: dict[str, list[Tensor]] = {}
    for batch in batches(Recipe(batch_size=5)):
        for image_id, noise in zip(batch.image_ids, batch.noise.normal("eps", 0, (4,)), strict=True):
            drawn.setdefault(image_id, []).append(noise)
    assert all(not torch.equal(n[0], n[1]) for n in drawn.values())


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
