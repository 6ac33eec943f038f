# SPDX-License-Identifier: Apache-2.0
"""The training log: a row every few steps, kept in every state, a Parquet file in the end."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.atomic import atomic_path
from sis.data.manifest import publish_file
from sis.data.provenance import RunRecord
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import write_table, write_table_file
from sis.training.learner import Learned

#: Every so many steps are logged; the last of each stage and those with a picture are, too.
_EVERY = 10


def is_logged(step: int, recipe: Recipe) -> bool:
    """Whether a step (0-based) has a row of its own."""
    return step % _EVERY == 0 or step + 1 in (recipe.steps, recipe.total)


def row(step: int, recipe: Recipe, learned: Learned, seconds: float, pictures: dict[str, float]) -> dict:
    """The row of a step (see TRAINING_LOG); `pictures` are the monitor's columns, if it looked."""
    values = {
        "step": step,
        "stage": recipe.stage(step),
        "loss": learned.loss,
        **learned.parts,
        "learning_rate": recipe.rate(step),
        "gradient_norm": learned.gradient_norm,
        "seconds": seconds,
        "images": (step + 1) * recipe.batch_size,
        **pictures,
    }
    return {name: values.get(name) for name in TRAINING_LOG.names}


def to_tensors(log: list[dict]) -> dict[str, Tensor]:
    """The log's columns, `log.NAME`; a missing number is a NaN."""
    found = {}
    for field in TRAINING_LOG:
        dtype = torch.int64 if pa.types.is_integer(field.type) else torch.float64
        column = [r[field.name] for r in log]
        found[f"log.{field.name}"] = torch.tensor([math.nan if v is None else v for v in column], dtype=dtype)
    return found


def from_tensors(columns: dict[str, Tensor]) -> list[dict]:
    """The log again, from columns by name."""
    lists = [columns[name].tolist() for name in TRAINING_LOG.names]
    rows = (dict(zip(TRAINING_LOG.names, values, strict=True)) for values in zip(*lists, strict=True))
    # Only a NaN differs from itself.
    return [{k: None if v != v else v for k, v in values.items()} for values in rows]


def write(log: list[dict], path: Path, facts: dict) -> None:
    """Write the log of a training under way, for people to look at."""
    write_table(pa.Table.from_pylist(log, schema=TRAINING_LOG), path, TRAINING_LOG, facts)


def publish(log: list[dict], path: Path, facts: dict, run: RunRecord) -> None:
    """Write the finished log with its manifest."""
    with atomic_path(path) as temporary:
        write_table_file(pa.Table.from_pylist(log, schema=TRAINING_LOG), temporary, TRAINING_LOG, facts)
        publish_file(temporary, path, "training", facts, run)
