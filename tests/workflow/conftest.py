# SPDX-License-Identifier: Apache-2.0
"""Projects in which the workflow tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from project_copy import Project, copy_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project without artefacts."""
    return copy_project(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the tiny experiment has run to its end."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    project.snakemake()
    return project
