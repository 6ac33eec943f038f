# SPDX-License-Identifier: Apache-2.0
"""Which code trains: a hash of the sources that decide the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

import sis

#: Folders and files of the package whose code decides a training's bits.
_DECIDING = (
    "config/recipe.py",
    "data/policies",
    "data/records.py",
    "data/resize.py",
    "data/training_data.py",
    "diffusion",
    "nets",
    "training",
)


def code_digest(method: Path) -> str:
    """Changes with the method's file, with the code that trains it, and with the version of torch."""
    root = Path(sis.__file__).parent
    files = [method, *(f for name in _DECIDING for f in _files(root / name))]
    digest = hashlib.sha256(str(torch.__version__).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]
