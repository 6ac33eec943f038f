# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices of label maps, void left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluators.partial import Partial
from sis.data.labels import LabelSpace
from sis.errors import SisError, first_of


def confusions(labels: NDArray[np.uint8], predicted: NDArray[np.uint8], space: LabelSpace) -> NDArray[np.int32]:
    """Count pixels by (label, prediction) for each image.

    Args:
        labels: `(b, h, w)` stored ids; void and ignored classes are left out.
        predicted: `(b, h, w)` ids among `space.evaluated_ids`, else SisError.

    Returns:
        `(b, c, c)` over the evaluated classes in the order of the segmenters' ids; rows are
        labels, columns predictions.
    """
    ids = space.evaluated_ids
    c = len(ids)
    place = np.full(256, -1, np.int64)
    place[ids] = np.arange(c)
    truth, guess = place[labels], place[predicted]
    if (guess < 0).any():
        stray = first_of(np.unique(predicted[guess < 0]))
        raise SisError(f"the segmenter predicts ids that no score counts: {stray}", fix="check its label table")
    counts = np.empty((len(labels), c, c), np.int32)
    for i in range(len(labels)):
        counted = truth[i] >= 0
        pairs = c * truth[i][counted] + guess[i][counted]
        counts[i] = np.bincount(pairs, minlength=c * c).reshape(c, c)
    return counts


def weighted(rows: Partial, weights: NDArray) -> NDArray[np.float64]:
    """Sum the confusions of all images, each times its label map's weight: `(r, m)` -> `(r, c, c)`."""
    counts = rows.columns["confusion"]
    c = counts.shape[-1]
    by_map = np.zeros((len(rows.maps), c * c))
    np.add.at(by_map, rows.by_map(), counts.reshape(len(rows), c * c))
    return (weights @ by_map).reshape(-1, c, c)
