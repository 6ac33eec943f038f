# SPDX-License-Identifier: Apache-2.0
"""Work that two experiments have in common is done once: the second finds it finished."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from project_copy import Project

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def planned(project: Project, experiment: dict) -> dict[str, int]:
    """Rules that Snakemake would run for the experiment, and how often."""
    path = project.folder / "config" / "experiments" / f"{experiment['name']}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    command = ("snakemake", "--profile", "workflow/profiles/local", "--cores", "2", "-n")
    done: subprocess.CompletedProcess[str] = project.run(*command, "--config", f"experiment={experiment['name']}")
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE) if rule != "total"}


def test_a_second_experiment_finds_the_work_of_the_first(finished: Project) -> None:
    tiny = yaml.safe_load((finished.folder / "config" / "experiments" / "tiny.yaml").read_text())
    again = planned(finished, {**tiny, "name": "again"})
    assert set(again) == {"all", "publish"}
    renamed = {f"other-{name}": run for name, run in tiny["runs"].items()}
    other = planned(finished, {**tiny, "name": "renamed", "runs": renamed})
    assert not set(other) & {
        "prepare_split",
        "describe_dataset",
        "train",
        "prior",
        "train_segmenter",
        "measure_reference",
    }
    assert other["sample"] >= len(renamed) - 1  # a run's name is part of its images' own; one run is a rule's


def test_a_changed_parameter_is_work_of_its_own(finished: Project) -> None:
    tiny = yaml.safe_load((finished.folder / "config" / "experiments" / "tiny.yaml").read_text())
    name, run = next((n, r) for n, r in tiny["runs"].items() if r.get("fit", {}).get("steps"))
    more = {**run, "fit": {**run["fit"], "steps": run["fit"]["steps"] + 1}}
    changed = planned(finished, {**tiny, "name": "changed", "runs": {**tiny["runs"], name: more}})
    assert changed["train"] == 1 and changed["sample"] == 1 and "train_segmenter" not in changed
