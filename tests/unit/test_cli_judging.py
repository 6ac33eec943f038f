# SPDX-License-Identifier: Apache-2.0
"""`sis compare` and `sis gallery`: names of an experiment become the files that the evaluators are given."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sis import cli
from sis.plan import Plan, load_plan


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the evaluators would be started with."""
    calls: list[list[str]] = []

    def start(arguments: list[str], **_: Any) -> subprocess.CompletedProcess:
        calls.append(arguments[1:])
        return subprocess.CompletedProcess(arguments, 7)

    monkeypatch.setattr(subprocess, "run", start)
    return calls


def measured(root: Path, *runs: str) -> Plan:
    """The plan of the tiny experiment whose first runs count as measured."""
    plan = load_plan({"artefacts": str(root)}, experiment="tiny")
    for name in runs:
        spec = plan.spec("scenes_tiny", name)
        path = Path(plan.partials("scenes_tiny", spec.run_id, spec.protocol.name))
        path.parent.mkdir(parents=True)
        path.touch()
    return plan


def test_runs_are_named_and_options_handed_on(tmp_path: Path, told: list[list[str]]) -> None:
    plan = measured(tmp_path, "palette", "class-mean")
    line = ["compare", "palette", "class-mean", "--experiment", "tiny", "--artefacts", str(tmp_path)]
    more = ["--metrics", "miou", "fd", "--classes", "--gallery", "x.html", "--shown", "2"]
    assert cli.main([*line, *more]) == 7, "the evaluators' exit code"
    (arguments,) = told
    ids = [plan.spec("scenes_tiny", run).run_id for run in ("palette", "class-mean")]
    assert arguments[:3] == ["-m", "evaluators", "compare"]
    assert arguments[3:5] == [plan.partials("scenes_tiny", i, "scenes-tiny") for i in ids]
    assert arguments[5:7] == ["--protocol", "scenes-tiny"] and "--reference" not in arguments
    at = arguments.index("--images")
    assert arguments[at + 1 : at + 3] == [plan.images("scenes_tiny", i) for i in ids]
    assert arguments[arguments.index("--pairs") + 1] == plan.pairs("scenes_tiny", "val")
    assert arguments[-8:] == ["--metrics", "miou", "fd", "--classes", "--gallery", "x.html", "--shown", "2"]


def test_a_reference_that_lies_there_is_used(tmp_path: Path, told: list[list[str]]) -> None:
    plan = measured(tmp_path, "palette")
    reference = Path(plan.reference("scenes_tiny", "scenes-tiny"))
    reference.parent.mkdir(parents=True)
    reference.touch()
    line = ["gallery", "palette", "--experiment", "tiny", "--artefacts", str(tmp_path), "--out", "g.html"]
    assert cli.main([*line, "--worst", "3"]) == 7
    (arguments,) = told
    spec = plan.spec("scenes_tiny", "palette")
    assert arguments[3] == plan.images("scenes_tiny", spec.run_id)
    assert arguments[arguments.index("--reference") + 1] == str(reference)
    assert arguments[-4:] == ["--worst", "3", "--out", "g.html"]


def test_what_is_not_measured_is_refused_with_the_command_that_does(
    tmp_path: Path, told: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = measured(tmp_path, "palette")
    line = ["compare", "palette", "real", "--experiment", "tiny", "--artefacts", str(tmp_path)]
    assert cli.main(line) == 2
    missing = plan.partials("scenes_tiny", plan.spec("scenes_tiny", "real").run_id, "scenes-tiny")
    refused = capsys.readouterr().err
    assert "run real is not measured yet" in refused
    assert f"snakemake --profile workflow/profiles/local {missing}" in refused
    assert cli.main(["compare", "palette", "reel", "--experiment", "tiny"]) == 2
    assert "did you mean 'real'" in capsys.readouterr().err
    assert not told


def test_folders_are_compared_under_a_protocol(told: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "a", "b"]) == 2
    assert "give --experiment for two runs, or --protocol for two folders" in capsys.readouterr().err
    assert cli.main(["compare", "a", "b", "--protocol", "scenes", "--gallery", "x.png"]) == 2
    assert "use python -m evaluators compare" in capsys.readouterr().err
    assert cli.main(["compare", "a", "b", "--protocol", "scenes", "--reference", "r", "--out", "o"]) == 7
    assert told[0][3:] == ["a", "b", "--protocol", "scenes", "--reference", "r", "--out", "o"]
