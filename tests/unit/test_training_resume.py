# SPDX-License-Identifier: Apache-2.0
"""An interrupted training ends with the bits of a whole one, or says why its states are not used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_training
import torch
from safetensors import safe_open
from small_training import StoppedError, same, stop_in_step_3, train

from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.errors import SisError
from sis.plan import RunSpec
from sis.training import source
from sis.training.loop import TrainingRun
from sis.training.source import code_digest
from sis.training.train import train_model

no_thread_is_left = small_training.no_thread_is_left
whole = small_training.whole


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
    stop_in_step_3(spec, tiny_pairs / "train", out)
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
