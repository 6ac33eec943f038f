# SPDX-License-Identifier: Apache-2.0
"""Ensembles: the best members by the protocol's metric, their plain mean, and what a run on it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from sis.data.atomic import atomic_path
from sis.data.manifest import publish_file, read_manifest
from sis.data.schemas import SCORES
from sis.data.tables import write_table
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError
from sis.plan import RunSpec, load_plan
from sis.run_spec import Ensemble
from sis.training.ensemble import average_best


def score(path: Path, *rows: tuple[str, str, float | None, str]) -> Path:
    texts = {field.name: "" for field in SCORES if field.type == pa.string()}
    numbers = {field.name: 0 for field in SCORES if pa.types.is_integer(field.type)}
    made = [
        {**texts, **numbers, "metric": m, "class_name": c, "value": v, "direction": d, "replicates": []}
        for m, c, v, d in rows
    ]
    table = pa.Table.from_pylist([{f.name: row.get(f.name) for f in SCORES} for row in made], schema=SCORES)
    with atomic_path(path) as temporary:
        write_table(table, temporary, SCORES)
        publish_file(temporary, path, "scores", {}, {})
    return path


def model(path: Path, value: float) -> Path:
    save_tensors({"w": torch.full((2,), value)}, path, "model", {"method": "sdm", "model_id": "x", "steps": 1}, {})
    return path


@pytest.fixture
def members() -> tuple[RunSpec, ...]:
    spec = load_plan(experiment="tiny").runs[0]
    return tuple(replace(spec, name=name, sample_seed=n) for n, name in enumerate("abc"))


def place(folder: Path, values: list[float | None], metric: str = "fid", direction: str = "lower") -> list[list[Path]]:
    scores = [
        score(folder / f"{n}.parquet", (f"{metric}[stand-in]", "", v, direction), ("fid", "sky", 0.0, direction))
        for n, v in enumerate(values)
    ]
    return [scores, [model(folder / f"{n}.safetensors", float(n)) for n in range(len(values))]]


@pytest.mark.parametrize(("direction", "chosen", "mean"), [("lower", ["a", "c"], 1.0), ("higher", ["b", "c"], 1.5)])
def test_the_mean_is_that_of_the_best(
    members: tuple[RunSpec, ...], tmp_path: Path, direction: str, chosen: list[str], mean: float
) -> None:
    scores, models = place(tmp_path, [1.0, 3.0, 2.0], direction=direction)
    spec = replace(members[0], name="mean", ensemble=Ensemble(members, 2, "fid"))
    made = average_best(spec, scores, models, tmp_path / "out" / "model.safetensors")
    tensors, facts = load_tensors(tmp_path / "out" / "model.safetensors", "model")
    assert torch.equal(tensors["w"], torch.full((2,), mean))
    assert facts["ensemble"] == {"by": "fid", "values": {"a": 1.0, "b": 3.0, "c": 2.0}, "chosen": chosen}
    assert made.meta["model_id"] == spec.model_id and facts["method"] == "sdm"


def test_equal_members_are_chosen_in_their_order(members: tuple[RunSpec, ...], tmp_path: Path) -> None:
    scores, models = place(tmp_path, [2.0, 2.0, 2.0])
    spec = replace(members[0], name="mean", ensemble=Ensemble(members, 1, "fid"))
    assert average_best(spec, scores, models, tmp_path / "m.safetensors").meta["ensemble"]["chosen"] == ["a"]


def test_what_cannot_be_averaged_is_refused(members: tuple[RunSpec, ...], tmp_path: Path) -> None:
    scores, models = place(tmp_path, [1.0, None, 2.0])
    spec = replace(members[0], name="mean", ensemble=Ensemble(members, 2, "fid"))
    out = tmp_path / "m.safetensors"
    with pytest.raises(SisError, match="0 values of fid where one decides"):
        average_best(spec, scores, models, out)
    with pytest.raises(SisError, match="2 score tables and 3 models for 3 members"):
        average_best(spec, scores[:2], models, out)
    with pytest.raises(SisError, match="is no mean of others"):
        average_best(members[0], scores, models, out)
    scores[0].write_bytes(scores[0].read_bytes()[:-1] + b"\x00")
    with pytest.raises(SisError):
        average_best(spec, scores, models, out)
    assert not out.exists()
    with pytest.raises(SisError):
        read_manifest(out)
