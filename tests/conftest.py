# SPDX-License-Identifier: Apache-2.0
"""What all tests share: one thread, the built-in data prepared once, runs of methods with small parameters."""

from __future__ import annotations

import os

# Before numpy and torch: their thread pools are made at import, and two cores are shared by everybody.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import sis  # noqa: F401, I001  (first of all: it prepares the import of torchvision)

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from sis.plan import RunSpec

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("sis", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("sis")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep torch, once somebody has loaded it, on one thread."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes_tiny prepared: `train` (48 pairs) and `val` (16 pairs) of 32x32."""
    from sis.config.files import dataset_card
    from sis.data.prepare import prepare

    folder = tmp_path_factory.mktemp("pairs")
    card = dataset_card("scenes_tiny")
    for split in ("train", "val"):
        prepare(card, split, folder, folder / split)
    return folder


@pytest.fixture(scope="session")
def tiny_spec() -> Callable[..., RunSpec]:
    """`tiny_spec(method="sdm", **changes)`: a run on scenes_tiny with the method's example parameters, changed."""
    from sis.methods.discovery import method_info
    from sis.project.check import example_spec

    def make(method: str = "sdm", **changes: Any) -> RunSpec:
        return dataclasses.replace(example_spec(method_info(method)), **changes)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `tiny_spec("sdm")`, trained for six steps."""
    from sis.training.train import train_model

    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    train_model(tiny_spec("sdm"), tiny_pairs / "train", path, "cpu")
    return path


@pytest.fixture
def project_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project's configuration that a test may spoil; it is the project while the test runs."""
    from sis.config.files import project_root

    root = tmp_path / "project"
    shutil.copytree(ROOT / "config", root / "config")
    shutil.copytree(ROOT / "workflow" / "rules", root / "workflow" / "rules")
    shutil.copytree(ROOT / "sis" / "methods", root / "sis" / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "Snakefile").touch()
    monkeypatch.chdir(root)
    project_root.cache_clear()
    yield root
    project_root.cache_clear()
