# SPDX-License-Identifier: Apache-2.0
"""docs/add-a-method.md is true: its three blocks are complete files within their limits, and they work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project_copy import Project, copy_project

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "add-a-method.md"
LIMITS = {"sis/methods/tint.py": 60, "config/methods/dots.yaml": 15, "config/methods/handed_in.yaml": 8}


def blocks() -> dict[str, str]:
    """The fenced blocks that begin with a file name, by that name, without the name's line."""
    fenced = re.findall(r"```\w+\n# (\S+)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return dict(fenced)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_project(tmp_path_factory.mktemp("documented"))
    for name, text in blocks().items():
        (project.folder / name).write_text(text)
    return project


def test_the_three_examples_keep_to_their_line_counts() -> None:
    found = blocks()
    assert set(found) == set(LIMITS)
    for name, limit in LIMITS.items():
        assert len(found[name].splitlines()) <= limit, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tint", "dots", "handed_in"])
def test_each_example_passes_its_contract(project: Project, name: str) -> None:
    done = project.run("sis", "check", name)
    assert "ok  " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "command", "images", "rule"])
def test_what_sis_new_writes_passes_its_contract(project: Project, kind: str) -> None:
    project.run("sis", "new", "method", f"fresh_{kind}", "--kind", kind)
    assert "ok  " in project.run("sis", "check", f"fresh_{kind}").stdout
    again = project.run("sis", "new", "method", f"fresh_{kind}", "--kind", kind, check=False)
    assert again.returncode == 2 and "exists already" in again.stdout


@pytest.mark.slow
def test_new_datasets_and_metrics_pass_their_contracts(project: Project) -> None:
    project.run("sis", "new", "dataset", "fresh_pairs")
    refused = project.run("sis", "check", "fresh_pairs", check=False)
    assert refused.returncode == 2 and "no folder with the raw files of fresh_pairs" in refused.stdout
    for split, first, count in (("train", 0, 8), ("val", 8, 2)):
        for index in range(first, first + count):
            noise = np.random.default_rng(index).integers(0, 256, (70, 90, 3), np.uint8)
            for kind, picture in (("images", noise), ("labels", noise[..., 0] % 2)):
                path = project.folder / "data" / "fresh_pairs" / split / kind / f"{index:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    assert "ok  no image is in two splits" in project.run("sis", "check", "fresh_pairs").stdout
    project.run("sis", "new", "metric", "fresh_metric")
    assert "ok  " in project.run("sis", "check", "fresh_metric").stdout
