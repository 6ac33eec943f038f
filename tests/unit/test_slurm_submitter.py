# SPDX-License-Identifier: Apache-2.0
"""What sbatch says of a job before it takes it, and when that is no answer yet. Its commands are small scripts here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sis.config.cluster import Needs, SlurmSite
from sis.errors import SisError
from sis.launch import submit
from sis.launch.queue import Unreachable
from sis.launch.submit import SlurmSubmitter

NEEDS = Needs(gpus=1, nodes=1, tasks=1, cpus=1, memory_gb=1, hours=1)
REFUSAL = "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let a command of Slurm be a shell script."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def write(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def asked(submitter: SlurmSubmitter, tmp_path: Path) -> SisError:
    with pytest.raises(SisError) as caught:
        submitter.submit([], "sis-name", tmp_path, NEEDS)
    return caught.value


def test_a_refusal_is_final_once_all_nodes_have_reported(say: Callable[[str, str], None], tmp_path: Path) -> None:
    say("sbatch", REFUSAL)
    say("sinfo", "echo idle; echo 'down*'")
    error = asked(SlurmSubmitter(SlurmSite(partition="gpu")), tmp_path)
    assert not isinstance(error, Unreachable) and "no node can give what was asked for" in error.what


def test_a_refusal_is_none_before_all_nodes_have_reported(say: Callable[[str, str], None], tmp_path: Path) -> None:
    say("sbatch", REFUSAL)
    say("sinfo", 'echo "$*" > "$(dirname "$0")/asked"; echo idle; echo unknown')
    error = asked(SlurmSubmitter(SlurmSite(partition="gpu")), tmp_path)
    assert isinstance(error, Unreachable) and "has not heard of all its nodes" in error.what
    assert "-p gpu" in (tmp_path / "asked").read_text()


def test_nodes_that_never_report_are_not_waited_for_for_ever(
    say: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say("sbatch", REFUSAL)
    say("sinfo", "echo unknown")
    submitter = SlurmSubmitter(SlurmSite())
    assert isinstance(asked(submitter, tmp_path), Unreachable)
    monkeypatch.setattr(submit, "_WAKING", 0.0)
    assert not isinstance(asked(submitter, tmp_path), Unreachable)


def test_other_refusals_are_final(say: Callable[[str, str], None], tmp_path: Path) -> None:
    say("sbatch", "echo 'allocation failure: Invalid partition name specified' >&2; exit 1")
    say("sinfo", "echo unknown")
    assert "there is no" in asked(SlurmSubmitter(SlurmSite(partition="gpu")), tmp_path).what
