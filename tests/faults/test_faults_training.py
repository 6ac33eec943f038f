# SPDX-License-Identifier: Apache-2.0
"""A training of two stages with pictures, killed anywhere: the next run ends with the bits of one in peace."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_bench import Bench, assert_no_leftovers, assert_nothing_torn
from test_faults_kills import Scene, sweep

from sis.data.manifest import file_sha256
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.diffusion.noise import Noise
from sis.methods.sdm import SDM
from sis.plan import RunSpec, load_plan
from sis.training.learner import Learner
from sis.training.loop import TrainingRun
from sis.training.state import StateFolder
from sis.training.train import train_model

pytestmark = pytest.mark.faults

STAGED = """
name: staged
title: Staged
datasets:
  scenes_tiny: {protocol: scenes-tiny}
runs:
  sdm:
    method: sdm
    fit: {width: 8, multipliers: [1], blocks: 1, attention: [], head_channels: 8, spade_hidden: 8, steps: 4,
          finetune_steps: 4, batch_size: 2, learning_rate: 0.001, ema: 0.9, checkpoint_every: 3, diffusion_steps: 50,
          keep_raw: true, preview_every: 5, preview_images: 2, preview_steps: 2}
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staged") / "staged.yaml"
    path.write_text(STAGED)
    return path


@pytest.fixture(scope="module")
def spec(staged: Path) -> RunSpec:
    return load_plan(experiment=str(staged)).spec("scenes_tiny", "sdm")


def result(folder: Path) -> dict[str, Any]:
    """All that a training leaves: weights, pictures and log, but for the log's seconds."""
    out = folder / "out"
    log = read_table(out / "training.parquet", TRAINING_LOG).drop_columns(["seconds"]).to_pylist()
    files = [*out.glob("*.safetensors"), *(out / "previews").iterdir()]
    return {"log": log} | {path.name: file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def wanted(spec: RunSpec, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("peace")
    train_model(spec, bench.train_pairs, folder / "out" / "model.safetensors", "cpu")
    found = result(folder)
    assert [row["step"] for row in found["log"]] == [0, 3, 4, 7]
    assert sorted(found) == [
        "log", "model-raw.safetensors", "model.safetensors",
        "over_time.png", "step-000004.png", "step-000005.png", "step-000008.png",
    ]  # fmt: skip
    return found


def kill_in(owner: type, name: str, number: int, after: bool = False) -> Callable[[], None]:
    """Make the process kill itself in the call number `number` (from 1) of a method, or just after that call."""

    def arm() -> None:
        plain, count = getattr(owner, name), [0]

        def struck(*args: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = plain(*args, **named)
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        setattr(owner, name, struck)

    return arm


#: The moment, how to strike at it, and the steps that are done by the state which the next run finds.
MOMENTS: dict[str, tuple[Callable[[], None], int]] = {
    "in the first step": (kill_in(TrainingRun, "_step", 1), 0),
    "in the first stage, between weights and average": (kill_in(Learner, "_average", 2), 0),
    "in the first stage, after a state": (kill_in(StateFolder, "save", 1, after=True), 3),
    "after the last step of the first stage": (kill_in(TrainingRun, "_step", 4, after=True), 3),
    "while the picture of the first stage is drawn": (kill_in(SDM, "sample", 1), 3),
    "between that picture and its state": (kill_in(SDM, "sample", 1, after=True), 3),
    "exactly between the stages": (kill_in(StateFolder, "save", 2, after=True), 4),
    "while the second stage begins": (kill_in(Learner, "begin_second_stage", 1), 4),
    "when the second stage has begun": (kill_in(Learner, "begin_second_stage", 1, after=True), 4),
    "in the second stage, in a backward pass": (kill_in(torch.Tensor, "backward", 6, after=True), 4),
    "in the second stage, while noise is drawn for a picture": (kill_in(Noise, "normal", 10), 4),
    "in the second stage, after its state": (kill_in(StateFolder, "save", 3, after=True), 6),
    "when all steps are done": (kill_in(StateFolder, "save", 4, after=True), 8),
    "while the finished training is tidied": (kill_in(StateFolder, "clear", 1), 8),
}


def killed(arm: Callable[[], None], train: Callable[[], object]) -> int:
    """Run a training in a fork that is armed; returns the signal that ended it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's threads sleep
        child = os.fork()
    if child == 0:
        try:
            arm()
            train()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_killed_at_a_moment_ends_with_the_same_bits(
    spec: RunSpec, bench: Bench, wanted: dict[str, Any], tmp_path: Path, moment: str
) -> None:
    arm, done = MOMENTS[moment]

    def train() -> object:
        return train_model(spec, bench.train_pairs, tmp_path / "out" / "model.safetensors", "cpu")

    assert killed(arm, train) == -signal.SIGKILL
    assert_nothing_torn(tmp_path)
    states = sorted((tmp_path / "out" / "work").glob("state-*.safetensors"))
    assert [int(p.stem.removeprefix("state-")) for p in states[-1:]] == ([done] if done else [])
    train()
    assert result(tmp_path) == wanted
    assert_nothing_torn(tmp_path)
    assert_no_leftovers(tmp_path)
    left = sorted(path.name for path in (tmp_path / "out" / "work").iterdir())
    assert left == [".training.lock", "model.safetensors.manifest.json.spare", "model.safetensors.spare"]


def test_a_training_killed_again_and_again_ends_with_the_same_bits(
    spec: RunSpec, bench: Bench, wanted: dict[str, Any], tmp_path: Path
) -> None:
    def train() -> object:
        return train_model(spec, bench.train_pairs, tmp_path / "out" / "model.safetensors", "cpu")

    ends = [killed(kill_in(StateFolder, "save", 1, after=True), train) for _ in range(4)]
    assert ends == [-signal.SIGKILL] * 4, "each attempt comes one state further"
    train()
    assert result(tmp_path) == wanted


@pytest.mark.slow
def test_a_training_of_two_stages_survives_a_kill_at_every_write_point(
    bench: Bench, staged: Path, wanted: dict[str, Any], memory: Path
) -> None:
    bench.train_pairs  # noqa: B018

    def argv(folder: Path) -> list:
        chosen = ["--experiment", staged, "--dataset", "scenes_tiny", "--run", "sdm", "--device", "cpu"]
        return ["train", *chosen, "--pairs", folder / "pairs", "--out", folder / "out/model.safetensors"]

    def start(folder: Path) -> None:
        shutil.copytree(bench.train_pairs, folder / "pairs")

    def same_as_wanted(folder: Path) -> dict[str, Any]:
        assert result(folder) == wanted
        return wanted

    assert sweep(bench, Scene(argv, same_as_wanted, start=start), memory, ("before", "torn")) > 120
