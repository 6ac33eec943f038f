# SPDX-License-Identifier: Apache-2.0
"""A run whose weights somebody else trained: imported by the workflow, sampled like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from project_copy import Project, copy_project

from sis.data.image_set import pixel_hashes
from sis.data.manifest import read_manifest

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

FIT = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 32, "spade_hidden": 128,
       "steps": 6, "batch_size": 4, "learning_rate": 0.001, "diffusion_steps": 50}  # fmt: skip
SAMPLE = {"steps": 3, "guidance": 1.5}


def write_experiment(project: Project, runs: dict) -> None:
    base = {"name": "theirs", "title": "Theirs", "datasets": {"scenes_tiny": {"protocol": "scenes-tiny"}}}
    path = project.folder / "config" / "experiments" / "theirs.yaml"
    path.write_text(yaml.safe_dump({**base, "runs": runs}))


def make(project: Project, pattern: str) -> Path:
    """Let Snakemake make the artefact of the experiment whose path in the plan matches `pattern`."""
    command = ("snakemake", "--profile", "workflow/profiles/local", "--cores", "2", "--config", "experiment=theirs")
    script = f"from sis.plan import load_plan; p = load_plan(experiment='theirs'); print({pattern})"
    target = project.run("python", "-c", script).stdout.splitlines()[-1]
    project.run(*command, "--", target)
    return project.folder / target


def test_an_exported_model_comes_back_through_the_workflow_with_the_same_pictures(tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    ours = {"method": "sdm", "fit": FIT, "sample": SAMPLE}
    write_experiment(project, {"ours": ours})
    images = make(project, "p.images('scenes_tiny', p.runs[0].run_id)")
    model = make(project, "p.model('scenes_tiny', p.runs[0].model_id)")
    (project.folder / "weights").mkdir()
    project.run("sis", "checkpoint", "export", str(model), "--format", "sdm", "--out", "weights/sdm.pt")
    theirs = {**ours, "checkpoint": "weights/sdm.pt", "checkpoint_weights": "ema"}
    write_experiment(project, {"theirs": theirs})
    again = make(project, "p.images('scenes_tiny', p.runs[0].run_id)")
    assert again != images and pixel_hashes(again.parent) == pixel_hashes(images.parent)
    imported = read_manifest(make(project, "p.model('scenes_tiny', p.runs[0].model_id)"), "model")
    assert imported.meta["source"]["file"] == "sdm.pt"
