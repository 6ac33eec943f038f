# SPDX-License-Identifier: Apache-2.0
"""`sis eval` through the whole workflow: a folder becomes a table, and nothing is made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from project_copy import Project, copy_project

from sis.data.images import encode_png
from sis.data.pairs import PairSet

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

DATASET = "scenes_tiny"


def evaluate(project: Project, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `sis eval` in some folder, with stderr apart."""
    command = [sys.executable, "-m", "sis", "eval", *map(str, words), "--threads", "1"]
    return subprocess.run(
        command, cwd=cwd or project.folder, env=project.environment(), text=True, capture_output=True, timeout=1800,
        check=False,
    )  # fmt: skip


def made(project: Project) -> dict[str, int]:
    """When every image set, segmenter and partial was written."""
    patterns = ("images/**/*.parquet", "segmenters/**/*.safetensors", "partials/**/*.parquet", "pairs/**/*.parquet")
    paths = [p for pattern in patterns for p in (project.folder / "artefacts").glob(pattern)]
    return {str(p.relative_to(project.folder)): p.stat().st_mtime_ns for p in paths}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: Path) -> tuple[Project, Path]:
    """A project in which a folder, far away, has been evaluated once from outside."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    path = project.folder / "config/protocols/scenes-tiny.yaml"
    card = yaml.safe_load(path.read_text())
    card["segmenter"] |= {"steps": 3, "batch_size": 2}
    path.write_text(yaml.safe_dump({**card, "metrics": ["miou", "accuracy", "fd"]}))
    folder = tmp_path_factory.mktemp("far away") / "My Pictures"
    folder.mkdir()
    for pair in PairSet.open(tiny_pairs / "val"):
        noise = np.random.default_rng(len(pair.image_id)).integers(-20, 20, pair.image.shape)
        (folder / f"{pair.image_id}.png").write_bytes(encode_png(np.clip(pair.image + noise, 0, 255).astype(np.uint8)))
    done = evaluate(project, folder, "--dataset", DATASET, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert "mIoU (%) ↑" in done.stdout and "My" not in done.stdout.splitlines()[0]
    return project, folder


def test_the_table_has_the_real_photographs_beside_the_folder(judged: tuple[Project, Path]) -> None:
    project, _ = judged
    data = json.loads((project.folder / "results/eval/my-pictures/scenes-tiny.json").read_text())
    assert [m["metric"] for m in data["metrics"]] == ["miou", "accuracy", "fd-scenes-segmenter"]
    for metric in data["metrics"]:
        assert metric["low"] <= metric["value"] <= metric["high"] and metric["controls"]["real"] is not None
        assert metric["n_images"] == 16 and len(metric["protocol_id"]) == 16
        assert data["protocols"][metric["protocol_id"]]["metric"] == metric["metric"]
    assert data["warnings"] == [] and len(data["classes"]) == 10
    assert project.run("sis", "verify", "artefacts", "results").returncode == 0


def test_a_second_call_makes_nothing_again(judged: tuple[Project, Path]) -> None:
    project, folder = judged
    before = made(project)
    table = (project.folder / "results/eval/my-pictures/scenes-tiny.md").read_text()
    assert evaluate(project, folder, "--dataset", DATASET).returncode == 0
    assert made(project) == before
    assert (project.folder / "results/eval/my-pictures/scenes-tiny.md").read_text() == table


def test_some_metrics_are_read_off_what_was_measured(judged: tuple[Project, Path]) -> None:
    project, folder = judged
    before = made(project)
    done = evaluate(project, folder, "--dataset", DATASET, "--metrics", "accuracy", "--controls", "none")
    assert done.returncode == 0, done.stderr
    assert "mIoU" not in done.stdout and "measure" not in done.stderr and "segmenter" not in done.stderr
    assert {k: v for k, v in made(project).items() if k in before} == before
    whole, part = (
        json.loads((project.folder / f"results/eval/my-pictures/{name}.json").read_text())
        for name in ("scenes-tiny", "scenes-tiny.accuracy")
    )
    one, other = whole["metrics"][1], part["metrics"][0]
    assert {**one, "controls": {}} == other, "the same number under the same protocol id"


def test_a_refusal_inside_the_workflow_is_one_line(judged: tuple[Project, Path]) -> None:
    project, folder = judged
    (partial,) = (project.folder / "artefacts/partials" / DATASET).glob("my-pictures-*/scenes-tiny/fd-*.parquet")
    scores = next((project.folder / "artefacts/scores" / DATASET).glob("my-pictures-*/scenes-tiny.parquet"))
    whole = partial.read_bytes()
    times = partial.stat()
    partial.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    os.utime(partial, ns=(times.st_atime_ns, times.st_mtime_ns))
    scores.unlink()
    done = evaluate(project, folder, "--dataset", DATASET)
    partial.write_bytes(whole)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0] and "Traceback" not in done.stderr
    assert partial.name in lines[0] and "sha256 differs" in lines[0]
    assert evaluate(project, folder, "--dataset", DATASET).returncode == 0
