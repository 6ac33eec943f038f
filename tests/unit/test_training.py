# SPDX-License-Identifier: Apache-2.0
"""Training: the data order and all noise follow from the seed, and an interrupted run ends with the same bits."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_training import StoppedError, data, network, same, squared_error
from small_training import train as train_small
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.data.tensors import load_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.plan import RunSpec
from sis.training import source
from sis.training.loop import TrainBatch, TrainingRun
from sis.training.source import code_digest
from sis.training.train import compute_prior, train_model

RECIPE = Recipe(steps=12, batch_size=4, learning_rate=0.01, ema=0.8, checkpoint_every=3, warmup=2, weight_decay=0.01)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("sis-ahead")]


def train(folder: Path, **how: Any) -> TrainingRun:
    """Train by RECIPE; see small_training."""
    return train_small(folder, how.pop("recipe", RECIPE), **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run that nobody interrupted."""
    return train(tmp_path_factory.mktemp("whole"))


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


def test_a_state_of_another_configuration_is_refused_and_left_alone(tmp_path: Path, whole: TrainingRun) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=10)
    there = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SisError, match=r"made with other configuration \[.*\] - delete this folder to begin anew"):
        train(tmp_path, key="other")
    assert sorted(p.name for p in tmp_path.iterdir()) == there
    assert same(train(tmp_path), whole)


MADE_OF = {"model": "m", "data": "d", "code": "c", "device": "cpu", "processes": "1"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"code": "x"}, "made with other code "),
        ({"device": "cuda H100", "processes": "2"}, "with device cuda H100 .now cpu. and processes 2 .now 1. "),
    ],
)
def test_a_state_of_other_code_or_hardware_is_used_only_when_told_to(
    tmp_path: Path, other: dict[str, str], words: str
) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=10, key="before", made_of=MADE_OF | other)
    with pytest.raises(SisError, match=words + ".*add --resume-other, or delete"):
        train(tmp_path, made_of=MADE_OF)
    run = train(tmp_path, made_of=MADE_OF, resume_other=True)
    assert run.resumed == [{"step": 9, "other": list(other)}]
    assert train(tmp_path, made_of=MADE_OF).resumed == run.resumed, "its own states remember"


def test_a_state_of_a_method_is_bound_to_its_code(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"checkpoint_every": 2}), tmp_path / "model.safetensors"
    plain = TrainingRun._step

    def stopping(run: TrainingRun, step: int, *rest: Any) -> Any:
        if step == 3:
            raise StoppedError
        return plain(run, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(TrainingRun, "_step", stopping)
        train_model(spec, tiny_pairs / "train", out, "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("sis.training.train.code_digest", lambda method: "other")
        with pytest.raises(SisError, match="made with other code "):
            train_model(spec, tiny_pairs / "train", out, "cpu")
    manifest = train_model(spec, tiny_pairs / "train", out, "cpu")
    assert manifest is not None and "resumed" not in manifest.meta


def test_code_is_the_method_s_file_what_trains_it_and_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = tmp_path / "method.py"
    method.write_text("one")
    first = code_digest(method)
    assert first == code_digest(method)
    method.write_text("two")
    second = code_digest(method)
    monkeypatch.setattr("sis.training.source._DECIDING", ("nets",))
    third = code_digest(method)
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert len({first, second, third, code_digest(method)}) == 4
    monkeypatch.undo()
    root = Path(code_digest.__code__.co_filename).parents[1]
    assert all((root / name).exists() for name in source._DECIDING)


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_state_of_another_model_or_other_data_is_never_used(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=4, key="before", made_of=MADE_OF | {name: "x", "code": "x"})
    with pytest.raises(SisError, match=f"other {name} .*delete this folder to begin anew, or choose another --out"):
        train(tmp_path, made_of=MADE_OF, resume_other=True)


def test_a_folder_of_states_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SisError, match=r"cannot read the training states: Not a directory \[.*file\]"):
        train(tmp_path / "file")

    def denied(folder: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SisError, match="cannot read the training states: Permission denied"):
        train(tmp_path)


def test_a_state_that_cannot_be_read_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=4)
    plain = Path.open

    def failing(path: Path, *how: Any, **named: Any) -> Any:
        if path.name.startswith("state-") and path.suffix == ".safetensors":
            raise OSError(5, "Input/output error")
        return plain(path, *how, **named)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(SisError, match=r"cannot read a training state: Input/output error \[.*state-00000003"):
        train(tmp_path)
    assert list(tmp_path.glob("state-*.safetensors"))


def test_a_state_carries_its_configuration_and_the_log_is_beside_it(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, stop=7, config={"method": "some"})
    with safe_open(tmp_path / "state-00000006.safetensors", "pt") as file:
        assert file.metadata() == {"sis": '{"method": "some", "step": 6}'}
    assert read_table(tmp_path / "training.parquet", TRAINING_LOG).column("step").to_pylist() == [0]


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
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 1)
            if checkpointing is not None:
                self.checkpointing = False

        def forward(self, x: Tensor) -> Tensor:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")

    recipe = Recipe(steps=2, batch_size=8, micro_batch=micro, checkpointing=bool(checkpointing))
    wanted = {0: "set micro_batch to 4", 3: "set micro_batch to 2", 1: ""}[micro]
    wanted += {0: " or ", 3: " or ", 1: ""}[micro] * (checkpointing is False)
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


def test_a_trained_model_is_published_with_its_facts_and_its_log(
    tiny_model: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    manifest = read_manifest(tiny_model, "model")
    assert manifest.meta["model_id"] == tiny_spec("sdm").model_id
    assert manifest.meta["parameters"] > 0 and math.isfinite(manifest.meta["final_loss"])
    log = read_table(tiny_model.with_name("training.parquet"), TRAINING_LOG)
    assert log.column("step").to_pylist() == [0, 5] and log.column("images").to_pylist() == [4, 24]
    assert log.column("stage").to_pylist() == [1, 1] and log.column("sample_mean_red").null_count == 2
    assert read_manifest(tiny_model.with_name("training.parquet"), "training").meta == {
        "model_id": manifest.meta["model_id"]
    }
    assert sorted(p.name for p in tiny_model.parent.iterdir() if p.is_file()) == [
        "model.safetensors", "model.safetensors.manifest.json",
        "training.parquet", "training.parquet.manifest.json",
    ]  # fmt: skip
    assert not list((tiny_model.parent / "work").iterdir())


def test_a_model_file_says_itself_what_it_is(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    spec, method = tiny_spec("sdm"), build_method(tiny_spec("sdm"), "cpu", None, None)
    with safe_open(tiny_model, "pt") as file:
        facts = json.loads(file.metadata()["sis"])
    assert facts == {
        "method": "sdm", "version": method.VERSION, "model_id": spec.model_id, "dataset": "scenes_tiny",
        "size": [32, 32], "labels": "scenes", "label_width": method.context.labels.width, "edges": False, "seed": 0,
        "fit": method.fit_params.model_dump(), "weights": "averaged", "steps": 6,
    }  # fmt: skip
    assert facts["fit"]["diffusion_steps"] == 50 and facts["fit"]["width"] == 8


def test_raw_weights_are_kept_on_request_and_are_a_model_too(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, tiny_model: Path
) -> None:
    spec = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"keep_raw": True})
    train_model(spec, tiny_pairs / "train", tmp_path / "model.safetensors", "cpu")
    averaged, meta = load_tensors(tmp_path / "model.safetensors", "model")
    raw, raw_meta = load_tensors(tmp_path / "model-raw.safetensors", "model")
    assert (meta["weights"], raw_meta["weights"]) == ("averaged", "raw")
    assert all(torch.equal(v, averaged[k]) for k, v in load_tensors(tiny_model, "model")[0].items())
    assert averaged.keys() == raw.keys() and not all(torch.equal(averaged[k], raw[k]) for k in raw)
    method = build_method(spec, "cpu", None, None)
    load_weights(method, tmp_path / "model-raw.safetensors")


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
