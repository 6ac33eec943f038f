# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices of label maps, void left out, and the scores that follow from them.

All scores are of a whole set, never a mean of images. The papers' segmenters average the intersection over union of
different classes: "union" (DRN, mmsegmentation) those with labels or predictions, "gt" (deeplab-pytorch) those with
labels, "all" (CSAIL) every class, where an absent one counts 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluators.networks import segmenter_of
from evaluators.partial import Partial
from sis.config.judges import ClassRule, SegmenterPreset
from sis.config.protocols import ProtocolCard
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
    place = np.full(256, c, np.uint16)  # the last row and column gather what no score counts
    place[ids] = np.arange(c)
    row_of = place * np.uint16(c + 1)
    counts = np.empty((len(labels), c, c), np.int32)
    for i, (truth, guess) in enumerate(zip(labels, predicted, strict=True)):
        cells = np.take(row_of, truth).ravel() + np.take(place, guess).ravel()
        table = np.bincount(cells, minlength=(c + 1) ** 2).reshape(c + 1, c + 1)
        if table[:, c].any():
            found = first_of(np.setdiff1d(guess, ids))
            raise SisError(f"the segmenter predicts ids that no score counts: {found}", fix="check its label table")
        counts[i] = table[:c, :c]
    return counts


def weighted(rows: Partial, weights: NDArray) -> NDArray[np.float64]:
    """Sum the confusions of all images, each times its label map's weight: `(r, m)` -> `(r, c, c)`."""
    counts = rows.columns["confusion"]
    c = counts.shape[-1]
    by_map = np.zeros((len(rows.maps), c * c))
    np.add.at(by_map, rows.by_map(), counts.reshape(len(rows), c * c))
    return (weights @ by_map).reshape(-1, c, c)


def class_iou(n: NDArray[np.float64], rule: ClassRule) -> NDArray[np.float64]:
    """Intersection over union of each class in percent, NaN for those that the rule does not average: `(r, c)`."""
    hit, truth = np.einsum("rcc->rc", n), n.sum(2)
    union = truth + n.sum(1) - hit
    iou = 100 * np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)
    return np.where({"union": union > 0, "gt": truth > 0, "all": np.ones_like(union, bool)}[rule], iou, np.nan)


def class_accuracy(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each class' labelled pixels that were found, in percent, NaN for those without: `(r, c)`."""
    hit, truth = np.einsum("rcc->rc", n), n.sum(2)
    return 100 * np.divide(hit, truth, out=np.full_like(hit, np.nan), where=truth > 0)


def mean_of_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that are not NaN, NaN where all are: `(r, c)` -> `(r,)`."""
    counted = ~np.isnan(values)
    total = counted.sum(1)
    return np.divide(np.where(counted, values, 0).sum(1), total, out=np.full(len(values), np.nan), where=total > 0)


def frequency_weighted_iou(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of the classes, each times its share of the labelled pixels, in percent: `(r,)`."""
    truth = n.sum(2)
    total = truth.sum(1)
    summed = (truth * np.nan_to_num(class_iou(n, "union"))).sum(1)
    return np.divide(summed, total, out=np.full(len(n), np.nan), where=total > 0)


def pixel_accuracy(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the labelled pixels that were found, in percent: `(r,)`."""
    pixels, hit = n.sum((1, 2)), np.einsum("rcc->r", n)
    return 100 * np.divide(hit, pixels, out=np.full(len(n), np.nan), where=pixels > 0)


def rule_of(card: ProtocolCard) -> ClassRule:
    """The protocol's class rule: its own, else that of a published segmenter's authors, else "union"."""
    if card.class_rule is not None:
        return card.class_rule
    judge = segmenter_of(card) if card.segmenter is not None else None
    return judge.class_rule if isinstance(judge, SegmenterPreset) else "union"


def judged(stem: str, card: ProtocolCard) -> str:
    """A metric's name in score tables: with the preset's, where a published segmenter judges."""
    return f"{stem}-{card.segmenter}" if isinstance(card.segmenter, str) else stem
