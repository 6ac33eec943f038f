# SPDX-License-Identifier: Apache-2.0
"""Several processes train together: the losses of one, the same weights in all, one voice when something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_training
import torch
from small_training import StoppedError, data, network, squared_error, stop_in_step_3
from torch import Tensor, distributed, nn

from sis.config.recipe import Recipe
from sis.data.manifest import read_manifest
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.plan import RunSpec
from sis.training import ranks as ranks_module
from sis.training.loop import TrainBatch
from sis.training.ranks import ALONE, Ranks, joined
from sis.training.train import train_model

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(
    steps=5, finetune_steps=4, batch_size=6, learning_rate=0.01, finetune_rate=0.005, ema=0.8, checkpoint_every=2
)


def forked(folder: Path, work: Callable[[Ranks], Any], count: int = 2) -> list[Any]:
    """What `work` gives in each of `count` processes that can speak to one another: JSON, or words of an error."""
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads sleep
            child = os.fork()
        if child == 0:
            _child(folder, work, rank, count)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def _child(folder: Path, work: Callable[[Ranks], Any], rank: int, count: int) -> None:
    signal.alarm(120)
    answer: Any = "died"
    try:
        ranks_module._GRACE = 0.0
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
        answer = work(Ranks(rank, count))
    except SisError as error:
        answer = f"refused: {error}"
    except SystemExit as error:
        answer = f"silent: {error.code}"
    except BaseException:
        answer = traceback.format_exc()
    finally:
        (folder / f"{rank}.json").write_text(json.dumps(answer))
        os._exit(0)


def train(folder: Path, ranks: Ranks, recipe: Recipe = RECIPE, **how: Any) -> small_training.TrainingRun:
    how = {"net": network(nn.GroupNorm(2, 4))} | how
    return small_training.train(folder / "work", recipe, ranks=ranks, **how)


def test_alone_everything_is_a_formality() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    assert ALONE.gather(values) is values and ALONE.share({"a": 1}) == {"a": 1} and ALONE.first
    assert torch.equal(ALONE.spread({"a": values})["a"], values)
    ALONE.average([values])
    ALONE.check_same({"a": values})
    ALONE.agree({"a": "b"})
    assert values.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(SisError, match="no"), ALONE.together():
        raise SisError("no")


def test_words_and_tensors_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "_BUCKET", 5)

    def work(ranks: Ranks) -> Any:
        me = ranks.rank + 1
        gradients = [torch.full(shape, float(me)) for shape in ((2, 2), (7,), (), (1, 3))]
        gradients.append(torch.tensor([me * 4.0], dtype=torch.float64))
        ranks.average(gradients)
        given = {"a": torch.tensor([[1.5, float("nan")]]), "b": torch.tensor(7), "c": torch.zeros(0, 3)}
        spread = ranks.spread(given if ranks.first else {})
        ranks.check_same(spread)
        ranks.agree({"code": "x"})
        ranks.wait()
        return {
            "share": ranks.share({"ä": [me, None]}),
            "gather": ranks.gather(torch.tensor([[me, 10 * me], [0, 0]])).tolist(),
            "average": [sorted(set(g.flatten().tolist())) for g in gradients],
            "spread": [[n, str(t.dtype), list(t.shape)] for n, t in spread.items()],
            "equal": str(spread["a"].tolist()),
        }

    one, two = forked(tmp_path, work)
    assert one == two
    assert one["share"] == {"ä": [1, None]} and one["gather"] == [[1, 10, 2, 20], [0, 0, 0, 0]]
    assert one["average"] == [[1.5]] * 4 + [[6.0]] and one["equal"] == "[[1.5, nan]]"
    assert one["spread"] == [["a", "torch.float32", [1, 2]], ["b", "torch.int64", []], ["c", "torch.float32", [0, 3]]]


@pytest.mark.parametrize("culprits", [{1}, {0}, {0, 1}])
def test_the_first_process_speaks_for_all(tmp_path: Path, culprits: set[int]) -> None:
    def work(ranks: Ranks) -> str:
        with ranks.together():
            if ranks.rank in culprits:
                raise SisError("no pairs here", where="a/b", fix="make some")
        return "went on"

    words = "no pairs here" if len(culprits) == 2 else f"process {min(culprits)}: no pairs here"
    assert forked(tmp_path, work) == [f"refused: {words} [a/b] - make some", "silent: 2"]


def test_the_others_let_the_first_one_speak_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun stops all processes as soon as one has ended, perhaps before the words are out."""
    waited: list[float] = []
    monkeypatch.setattr(ranks_module.time, "sleep", waited.append)
    with pytest.raises(SystemExit):
        Ranks(1, 2).refuse(SisError("no"))
    assert waited == [ranks_module._GRACE] and waited[0] >= 1
    with pytest.raises(SisError):
        Ranks(0, 2).refuse(SisError("no"))
    assert len(waited) == 1


def test_other_code_other_data_and_other_weights_are_found(tmp_path: Path) -> None:
    def facts(ranks: Ranks) -> None:
        ranks.agree({"model": "m", "code": str(ranks.rank), "data": str(ranks.rank)})

    found = forked(tmp_path / "facts", facts)
    assert found[0].startswith("refused: process 1 has another code and another data than process 0 - start all")
    assert found[1] == "silent: 2"

    def weights(ranks: Ranks) -> None:
        tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
        if not ranks.first:
            tensors["b"][1, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
        ranks.check_same(tensors)

    found = forked(tmp_path / "weights", weights)
    assert found[0].startswith("refused: the processes no longer hold the same weights: b - ")


def test_a_process_that_is_left_alone_says_so(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        if ranks.rank == 1:
            return "left"
        ranks.gather(torch.zeros(1, 1))
        return "went on"

    found = forked(tmp_path, work)
    assert re.match("refused: process 0 lost the others: .* - the first error above says why", found[0]), found[0]


@pytest.mark.parametrize("micro", [0, 1])
def test_processes_have_the_losses_and_weights_of_a_single_one(tmp_path: Path, micro: int) -> None:
    recipe = RECIPE.model_copy(update={"micro_batch": micro})

    def work(ranks: Ranks) -> Any:
        ids: list[str] = []

        def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
            ids.extend(batch.image_ids)
            return squared_error(net, batch)

        run = train(tmp_path / f"of-{ranks.rank}", ranks, recipe, loss=loss)
        weights = {k: v.tolist() for k, v in run.average.items()}
        return {"ids": ids, "log": run.log, "average": weights, "states": (tmp_path / f"of-{ranks.rank}").exists()}

    single = train(tmp_path / "single", ALONE, recipe)  # first of all: torch imports a good deal at the first step
    found = forked(tmp_path / "meet", work, count=3)
    assert [f["average"] for f in found] == [found[0]["average"]] * 3
    assert [f["states"] for f in found] == [True, False, False], "the first one writes"
    for one, all_ in zip(single.log, found[0]["log"], strict=True):
        assert all_["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert all_["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)
        assert all_["images"] == one["images"]
    for name, value in single.average.items():
        torch.testing.assert_close(torch.tensor(found[0]["average"][name]), value, rtol=1e-4, atol=1e-5)
    for step in range(9):
        shares = [f["ids"][2 * step : 2 * step + 2] for f in found]
        assert tuple(i for share in shares for i in share) == (single.batch(step, data(), recipe).image_ids)


@pytest.mark.parametrize(("precision", "stop"), [("float32", 1), ("float32", 5), ("float32", 8), ("fp16", 6)])
def test_processes_that_were_stopped_end_with_the_same_bits(tmp_path: Path, precision: str, stop: int) -> None:
    recipe = RECIPE.model_copy(update={"precision": precision})

    def attempt(folder: str, stop: int | None) -> Callable[[Ranks], Any]:
        def work(ranks: Ranks) -> Any:
            # The states of the first one alone are there for all.
            where = tmp_path / folder / str(ranks.rank)
            try:
                run = train(where, ranks, recipe, stop=stop)
            except StoppedError:
                return "stopped"
            log = [{k: v for k, v in row.items() if k != "seconds"} for row in run.log]
            return [{k: v.tolist() for k, v in run.average.items()}, log]

        return work

    whole = forked(tmp_path / "a", attempt("whole", None))
    assert whole[0][0] == whole[1][0]
    assert forked(tmp_path / "b", attempt("cut", stop)) == ["stopped", "stopped"]
    assert forked(tmp_path / "c", attempt("cut", None)) == whole


def test_a_loss_that_is_not_finite_is_told_once_with_the_images_of_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        def loss(net: nn.Module, batch: TrainBatch) -> Tensor:
            return squared_error(net, batch) / torch.tensor([1.0 if ranks.first else 0.0, 1.0])

        train(tmp_path, ranks, RECIPE, loss=loss)

    single = small_training.train(tmp_path / "x", RECIPE)
    ids = single.batch(0, data(), RECIPE).image_ids
    found = forked(tmp_path / "meet", work, count=3)
    assert found == [f"refused: the loss is not finite at step 0: {ids[2]}, {ids[4]} [title]", *["silent: 2"] * 2]


def test_what_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    def odd(ranks: Ranks) -> Any:
        train(tmp_path, ranks, RECIPE.model_copy(update={"batch_size": 5}))

    words = "refused: a batch of 5 images cannot be shared by 2 processes - make batch_size divisible by their number"
    assert forked(tmp_path / "odd", odd) == [words, "silent: 2"]

    def batch_norm(ranks: Ranks) -> Any:
        train(tmp_path, ranks, net=network())

    assert "batch norm must see a whole batch at once" in forked(tmp_path / "norm", batch_norm)[0]


def test_a_model_is_trained_by_two_and_written_by_the_first(
    tmp_path: Path, tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tiny_model: Path
) -> None:
    out = tmp_path / "model.safetensors"

    def work(ranks: Ranks) -> Any:
        return train_model(tiny_spec("sdm"), tiny_pairs / "train", out, "cpu", ranks) is None

    assert forked(tmp_path / "meet", work) == [False, True]
    two, one = (read_table(p.with_name("training.parquet"), TRAINING_LOG).to_pylist() for p in (out, tiny_model))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
    made = out.stat().st_mtime_ns
    assert forked(tmp_path / "again", work) == [False, True] and out.stat().st_mtime_ns == made, "it is there already"


def test_processes_with_another_configuration_are_refused(
    tmp_path: Path, tiny_pairs: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    def work(ranks: Ranks) -> Any:
        spec = tiny_spec("sdm", seed=ranks.rank)
        train_model(spec, tiny_pairs / "train", tmp_path / "model.safetensors", "cpu", ranks)

    found = forked(tmp_path / "meet", work)
    assert found[0].startswith("refused: process 1 has another model than process 0") and found[1] == "silent: 2"


def test_a_state_of_another_number_of_processes_is_refused(
    tmp_path: Path, tiny_pairs: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    spec, out = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"checkpoint_every": 2}), tmp_path / "model.safetensors"
    stop_in_step_3(spec, tiny_pairs / "train", out)

    def work(other: bool) -> Callable[[Ranks], Any]:
        return lambda ranks: train_model(spec, tiny_pairs / "train", out, "cpu", ranks, other) is None

    assert "that was made with processes 1 (now 2)" in forked(tmp_path / "refused", work(False))[0]
    assert forked(tmp_path / "accepted", work(True)) == [False, True]
    assert read_manifest(out, "model").meta["resumed"] == [{"step": 2, "other": ["processes"]}]


def test_torchrun_s_words_choose_place_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined("auto") as (ranks, device):
        assert (ranks, device) == (ALONE, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with joined("cpu") as (ranks, device):  # something else set it: torchrun says RANK, too
        assert ranks == ALONE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SisError, match="2 processes were started, and all of them on cuda:0"), joined("cuda:0"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SisError, match="has no GPU of its own, torch sees 1 - start torchrun with --nproc-per-node 1"):
        joined("cuda").__enter__()


EXPERIMENT = """
name: together
title: Together
datasets:
  scenes_tiny: {protocol: scenes-tiny}
runs:
  sdm:
    method: sdm
    fit: {width: 8, multipliers: [1], blocks: 1, attention: [], head_channels: 8, spade_hidden: 8, steps: 8,
          finetune_steps: 6, batch_size: 4, learning_rate: 0.001, ema: 0.9, checkpoint_every: 3, diffusion_steps: 50,
          preview_every: 7, preview_steps: 2}
"""


def torchrun(folder: Path, pairs: Path, out: str, *wrapped: str) -> subprocess.CompletedProcess[str]:
    (folder / "together.yaml").write_text(EXPERIMENT)
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tail = ["train", "--experiment", str(folder / "together.yaml"), "--dataset", "scenes_tiny", "--run-name", "sdm"]
    tail += ["--pairs", str(pairs), "--device", "cpu", "--out", str(folder / out / "model.safetensors")]
    command = [*head, *(wrapped or ("-m", "sis")), *tail]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


KILLED = """
import os, signal, sys
from sis.training.loop import TrainingRun

plain = TrainingRun._step

def step(run, number, *rest):
    if number == 10:  # in the second stage, in both processes or in one of them
        os.kill(os.getpid(), signal.SIGKILL) if os.environ["RANK"] == "1" else None
    return plain(run, number, *rest)

TrainingRun._step = step
from sis.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_torchrun_trains_as_a_single_process_does_and_resumes_after_a_kill(tmp_path: Path, tiny_pairs: Path) -> None:
    whole = torchrun(tmp_path, tiny_pairs / "train", "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr.count("14/14 steps") == 1, "one process speaks"
    (tmp_path / "killed.py").write_text(KILLED)
    killed = torchrun(tmp_path, tiny_pairs / "train", "cut", str(tmp_path / "killed.py"))
    assert killed.returncode == 1 and "Signal 9 (SIGKILL)" in killed.stderr
    states = [p.name for p in sorted((tmp_path / "cut" / "work").glob("state-*.safetensors"))]
    assert states == ["state-00000008.safetensors", "state-00000009.safetensors"]
    again = torchrun(tmp_path, tiny_pairs / "train", "cut")
    assert again.returncode == 0 and "resumes at 9/14" in again.stderr, again.stderr
    weights = [load_tensors(tmp_path / name / "model.safetensors", "model")[0] for name in ("whole", "cut")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    from sis.plan import load_plan

    spec = load_plan(experiment=str(tmp_path / "together.yaml")).spec("scenes_tiny", "sdm")
    train_model(spec, tiny_pairs / "train", tmp_path / "single" / "model.safetensors", "cpu")
    logs = [
        read_table(tmp_path / name / "training.parquet", TRAINING_LOG).to_pylist()
        for name in ("whole", "cut", "single")
    ]
    for rows in zip(*logs, strict=True):
        for other in rows[1:]:
            assert other["loss"] == pytest.approx(rows[0]["loss"], rel=1e-4)
            assert other["sample_mean_red"] == pytest.approx(rows[0]["sample_mean_red"], abs=1.0)
