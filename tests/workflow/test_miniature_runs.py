# SPDX-License-Identifier: Apache-2.0
"""The five real datasets in miniature, through every stage; an interrupted preparation, and a refused one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from miniatures import DATASETS, write
from miniatures.traps import TRAPS, spring
from project_copy import Project

from evaluators.discovery import find_metric
from sis.config.files import dataset_card, named
from sis.config.protocols import ProtocolCard
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.plan import load_plan

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def snakemake(project: Project, dataset: str, *targets: str) -> None:
    """Run Snakemake on the dataset's own experiment."""
    base = ("snakemake", "--profile", "workflow/profiles/local", "--cores", "2", *targets)
    project.run(*base, "--config", f"experiment=mini_{dataset}")


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_miniature_goes_through_every_stage(dataset: str, project: Project) -> None:
    write(dataset, project.folder / "data/mini" / dataset)
    snakemake(project, dataset, "prepare")
    artefacts = project.folder / "artefacts"
    for split, count in (("train", 8), ("val", 4)):
        assert len(PairSet.open(artefacts / f"pairs/{dataset}_mini/{split}")) == count
    card = artefacts / f"datasets/{dataset}_mini"
    assert dataset_card(f"{dataset}_mini").title in (card / "card.md").read_text()
    assert (card / "card.parquet").is_file() and (card / "pairs.png").is_file()
    assert {p.name for p in artefacts.iterdir()} == {"pairs", "datasets"}

    snakemake(project, dataset)
    results = project.folder / f"results/mini_{dataset}"
    scores = pd.read_parquet(results / "scores.parquet")
    assert set(scores.run) == set(load_plan(experiment=f"mini_{dataset}").experiment.runs)
    check_scores(scores, named("protocols", f"mini_{dataset}", ProtocolCard))
    page = (results / "leaderboard.html").read_text()
    assert all(title in page for title in set(scores.title))


def check_scores(scores: pd.DataFrame, protocol: ProtocolCard) -> None:
    """Every run has every metric: a number in the metric's range, or the reason why there is none."""
    overall = scores[scores.class_name == ""]
    assert overall.groupby("run").metric.nunique().nunique() == 1
    assert (overall[overall.value.isna()].note != "").all()
    assert overall.groupby("run").value.count().ge(3).all()
    modules = [find_metric(name).module for name in protocol.metrics]
    for module in modules:
        values = overall[overall.metric.str.startswith(module.name(protocol))].value.dropna()
        assert len(values) and values.between(*module.RANGE).all(), module.name(protocol)


def test_an_interrupted_preparation_continues_to_the_same_bytes(project: Project) -> None:
    path = project.folder / "config/datasets/ade20k_mini.yaml"
    card = yaml.safe_load(path.read_text())
    card["splits"]["train"]["count"] = 900
    path.write_text(yaml.safe_dump(card))
    write("ade20k", project.folder / "data/mini/ade20k", {"train": 900, "val": 4})
    out = project.folder / "artefacts/pairs/ade20k_mini/train"
    command = ["sis", "prepare", "--dataset", "ade20k_mini", "--split", "train", "--root", "data/mini/ade20k", "--out"]
    process = subprocess.Popen(
        [*command, str(out)], cwd=project.folder, env=project.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out / "shard-0000.parquet").is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the preparation ended before it could be killed"
    assert not (out / "manifest.json").exists() and not (out / "shard-0001.parquet").exists()
    first = (out / "shard-0000.parquet").stat().st_mtime_ns
    project.run(*command, str(out))
    assert (out / "shard-0000.parquet").stat().st_mtime_ns == first
    whole = project.folder / "whole"
    project.run(*command, str(whole))
    assert read_manifest(out).files == read_manifest(whole).files
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.parametrize("name", ["eight_bit_instances", "unpaired_label", "reference_out", "mapping_wrong"])
def test_a_trap_ends_the_command_with_one_line_and_nothing_written(name: str, project: Project) -> None:
    trap = TRAPS[name]
    root = project.folder / "data/mini" / trap.dataset
    spring(name, write(trap.dataset, root))
    out = project.folder / "artefacts/pairs" / trap.dataset
    before = files(project.folder)
    done = project.run(
        "sis", "prepare", "--dataset", f"{trap.dataset}_mini", "--split", trap.split, "--root", str(root),
        "--out", str(out), check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stdout
    assert files(project.folder) == before


def files(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
