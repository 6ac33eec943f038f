# SPDX-License-Identifier: Apache-2.0
"""Means over label maps: of the pairs of a map's samples, and of single images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluators.metric import Batch, Finished
from evaluators.partial import Partial, partial


def pair_row(batch: Batch, pairs: NDArray) -> Partial:
    """One row for a whole group: the values of all its pairs, float32 `(k (k - 1) / 2)`."""
    return partial(batch.image_ids[:1], [0], pairs=np.asarray(pairs, np.float32)[None])


def mean_of_maps(rows: Partial, weights: NDArray) -> Finished:
    """Mean over the pairs of a map, then the weighted mean over maps."""
    if not len(rows):
        return Finished(np.full(len(weights), np.nan), note="no label maps")
    by_map = rows.columns["pairs"].astype(np.float64).mean(1)
    return Finished(weights @ by_map / weights.sum(1))


def mean_of_rows(rows: Partial, column: str, weights: NDArray) -> Finished:
    """Weighted mean over images of a column `(n,)`, each weighing as much as its label map."""
    if not len(rows):
        return Finished(np.full(len(weights), np.nan), note="no images")
    by_row = weights[:, rows.by_map()]
    return Finished(by_row @ rows.columns[column].astype(np.float64) / by_row.sum(1))
