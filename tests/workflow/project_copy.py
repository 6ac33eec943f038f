# SPDX-License-Identifier: Apache-2.0
"""A copy of the project in a temporary folder, in which whole workflows and new plug-ins run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config", "workflow", "examples", "sis", "evaluators", "constraints.txt")


@dataclass(frozen=True)
class Project:
    """A project folder and how commands run in it."""

    folder: Path

    def run(self, *command: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment inside the project; stderr is part of stdout."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Snakemake with the local profile on the tiny experiment."""
        base = ("snakemake", "--profile", "workflow/profiles/local", "--cores", "2", "--config", "experiment=tiny")
        return self.run(*base, *arguments, check=check)

    def environment(self) -> dict[str, str]:
        own = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": own + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": str(self.folder),  # methods that a test adds are imported from here
            "OMP_NUM_THREADS": "1",
        }


def copy_project(folder: Path) -> Project:
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / part)
    return Project(folder)
