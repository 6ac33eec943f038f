# SPDX-License-Identifier: Apache-2.0
"""The whole DAG on the tiny experiment: every stage and every kind of method."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project_copy import Project

from sis.data.image_set import pixel_hashes
from sis.data.manifest import read_manifest
from sis.plan import load_plan

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

RUNS = set(load_plan(experiment="tiny").experiment.runs) | {"retrieval"}


def hashes(project: Project) -> dict[str, dict[tuple[str, int], str]]:
    return {p.parent.name: pixel_hashes(p.parent) for p in project.folder.glob("artefacts/images/*/*/manifest.json")}


def test_every_run_has_every_metric_or_a_reason(finished: Project) -> None:
    scores = pd.read_parquet(finished.folder / "results/tiny/scores.parquet")
    assert set(scores.run) == RUNS
    overall = scores[scores.class_name == ""]
    assert overall.groupby("run").metric.nunique().eq(6).all()
    missing = overall[overall.value.isna()]
    assert (missing.note != "").all()
    stand_ins = overall[overall.metric.str.startswith("lpips")]
    assert stand_ins.metric.str.contains("stand-in").all() and (stand_ins.stand_in != "").all()
    assert not overall.metric.str.lower().str.contains("fid").any()


def test_the_page_and_the_tables_name_every_run(finished: Project) -> None:
    results = finished.folder / "results/tiny"
    page = (results / "leaderboard.html").read_text()
    titles = set(pd.read_parquet(results / "scores.parquet").title)
    assert all(title in page for title in titles)
    table = next(p for p in (results / "tables").glob("*.md") if "classes" not in p.name).read_text()
    assert all(title.split(" (")[0] in table for title in titles)
    assert len(list((results / "gallery").glob("*.png"))) == 2
    for stage in ("prepare", "train", "prior", "sample", "evaluate"):
        assert stage in page


def test_every_artefact_names_the_run_that_made_it(finished: Project) -> None:
    manifests = [*finished.folder.rglob("artefacts/**/manifest.json"), *finished.folder.rglob("*.manifest.json")]
    assert len(manifests) >= 35
    for path in manifests:
        run = read_manifest(path).run
        assert {"argv", "commit", "host", "started", "ended", "peak_memory_bytes", "seeds"} <= set(run), path


def test_verify_reads_every_byte_of_the_finished_project(finished: Project) -> None:
    lines = finished.run("sis", "verify", "artefacts", "results").stdout.splitlines()
    assert sum(line.startswith("ok ") for line in lines) >= 35


def test_a_second_run_has_nothing_to_do(finished: Project) -> None:
    assert "Nothing to be done" in finished.snakemake().stdout


def test_the_report_carries_tables_and_gallery(finished: Project) -> None:
    finished.snakemake("--report", "report.html")
    report = (finished.folder / "report.html").read_text()
    assert "leaderboard.html" in report and "scenes_tiny.png" in report and "Gallery" in report and "Tables" in report


def test_adding_a_metric_measures_nothing_twice(project: Project) -> None:
    card_path = project.folder / "config/protocols/scenes-tiny.yaml"
    card = yaml.safe_load(card_path.read_text())
    card_path.write_text(yaml.safe_dump({**card, "metrics": ["miou", "fd"]}))
    experiment = project.folder / "config/experiments/tiny.yaml"
    chosen = yaml.safe_load(experiment.read_text())
    chosen["runs"] = {k: v for k, v in chosen["runs"].items() if k in ("real", "palette")}
    experiment.write_text(yaml.safe_dump({**chosen, "rule_methods": "none"}))
    project.snakemake()
    before = {p: p.stat().st_mtime_ns for p in project.folder.rglob("artefacts/partials/**/*.parquet")}
    images = {p: p.stat().st_mtime_ns for p in project.folder.rglob("artefacts/images/**/*.parquet")}
    assert before and images
    card_path.write_text(yaml.safe_dump({**card, "metrics": ["miou", "fd", "accuracy", "throughput"]}))
    done = project.snakemake().stdout
    assert "rule measure" in done and "rule sample" not in done and "rule train" not in done
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.stat().st_mtime_ns for p in images} == images
    assert set(pd.read_parquet(project.folder / "results/tiny/scores.parquet").metric) >= {"accuracy"}


def test_a_killed_workflow_continues_to_the_same_pixels(project: Project, finished: Project) -> None:
    command = ["snakemake", "--profile", "workflow/profiles/local", "--cores", "2", "--config", "experiment=tiny"]
    process = subprocess.Popen(
        command, cwd=project.folder, env=project.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    images = project.folder / "artefacts/images/scenes_tiny"
    deadline = time.monotonic() + 300
    while len(list(images.glob("*/manifest.json"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert process.poll() is None, "the workflow ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.snakemake("--unlock")
    project.snakemake()
    assert hashes(project) == hashes(finished)


def test_a_rule_file_joins_the_table_without_any_other_edit(project: Project) -> None:
    before = {p: p.read_bytes() for p in project.folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    project.run("sis", "new", "method", "echo_map", "--kind", "rule")
    planned = project.snakemake("-n").stdout
    assert "rule echo_map" in planned and "artefacts/images/scenes_tiny/echo_map-" in planned
    changed = [p for p, content in before.items() if p.read_bytes() != content]
    assert not changed
    assert Path(project.folder, "workflow/rules/methods/echo_map.smk").is_file()


def test_a_wrong_key_stops_the_workflow_with_file_and_line(project: Project) -> None:
    path = project.folder / "config/experiments/tiny.yaml"
    path.write_text(path.read_text().replace("samples_per_map: 2\nbatch", "sample_per_map: 2\nbatch"))
    done = project.snakemake("-n", check=False)
    assert done.returncode == 2
    refusal = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(refusal) == 1 and "Traceback" not in done.stdout and "File " not in done.stdout
    assert "unknown key 'sample_per_map'; did you mean 'samples_per_map'" in refusal[0]
    assert re.search(r"tiny\.yaml:\d+\]", refusal[0])
