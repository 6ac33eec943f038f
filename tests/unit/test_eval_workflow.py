# SPDX-License-Identifier: Apache-2.0
"""How `sis eval` runs the workflow: progress is shown, all is kept, a failing job's own line is the answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sis.errors import SisError
from sis.evaluation import workflow

ROOT = Path(__file__).parents[2]


def play(monkeypatch: pytest.MonkeyPatch, text: str, code: int) -> list[list[str]]:
    """A Snakemake that says `text` and ends with `code`."""
    commands: list[list[str]] = []

    def started(command: list[str]) -> subprocess.Popen[str]:
        commands.append(command)
        script = f"import sys; sys.stdout.write({text!r}); sys.exit({code})"
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(workflow, "_started", started)
    return commands


def test_progress_is_shown_and_everything_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = "Building DAG of jobs...\nmeasure x: 3/1,600 images, 2 images/s, ETA 0:10\nmiou 3.2 %\n"
    commands = play(monkeypatch, text, 0)
    workflow.run_workflow("eval-x", ["a.parquet", "b.parquet"], 3, tmp_path / "logs/x.log")
    assert capsys.readouterr().err == "measure x: 3/1,600 images, 2 images/s, ETA 0:10\n"
    assert (tmp_path / "logs/x.log").read_text() == text
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "snakemake"] and command[-3:] == ["--", "a.parquet", "b.parquet"]
    assert "experiment=eval-x" in command and command[command.index("--cores") + 1] == "3"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x\nerror: no such weights [w.pt] - fetch it\nRuleException\n", r"^no such weights \[w.pt\] - fetch it$"),
        ("LockException: Error: Directory cannot be locked.", "another workflow is working on the same files"),
        ("Traceback\nKeyError: 1\n", r"the workflow failed \[.*x.log\] - its last lines say why"),
        ("", "the workflow failed"),
    ],
)
def test_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, reason: str) -> None:
    play(monkeypatch, text, 1)
    with pytest.raises(SisError, match=reason):
        workflow.run_workflow("eval-x", [], 1, tmp_path / "x.log")


def test_snakemake_itself_answers_in_one_line(tmp_path: Path) -> None:
    """An experiment that is not there: the real program, stopped while it reads the plan."""
    with pytest.raises(SisError, match="no experiment called 'eval-nobody'"):
        workflow.run_workflow("eval-nobody", [], 1, tmp_path / "x.log")
