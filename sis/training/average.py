# SPDX-License-Identifier: Apache-2.0
"""Averages the weights of several checkpoints of one network (IIDM's model ensemble)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sis.data.manifest import manifest_path
from sis.data.tensors import load_tensors
from sis.data.weight_files import read_weights
from sis.data.weight_names import refuse_differences
from sis.errors import SisError


def average_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The plain mean of each tensor over files of weights, one of which is in memory at a time.

    Files of ours (with a manifest) are checked against it, others are read as `read_weights` does.

    Returns:
        float64 tensors under the names of the first file, in its order: as IIDM adds up and stores them.

    Raises SisError where there is no file, or where names or shapes differ between files.
    """
    if not files:
        raise SisError("no files of weights to average")
    total: dict[str, Tensor] = {}
    for file in files:
        weights = _weights(file)
        if total:
            refuse_differences(weights, total, file, fix="average checkpoints of one network")
        for name, value in weights.items():
            total[name] = total[name] + value if name in total else value.to(torch.float64)
    return {name: value / len(files) for name, value in total.items()}


def _weights(file: Path) -> dict[str, Tensor]:
    return load_tensors(file, "model")[0] if manifest_path(file).is_file() else read_weights(file).tensors
