# SPDX-License-Identifier: Apache-2.0
"""Mask accuracy M of IIDM: the share of an image's pixels that the segmenter finds, mean over images.

Every pixel and every class counts; void pixels, and those of classes that no segmenter answers with, count as missed.
IIDM's landscapes have neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import judged
from evaluators.groups import mean_of_rows
from evaluators.iidm_score import mask_accuracy
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard

TITLE = "Mask accuracy"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1


def name(card: ProtocolCard) -> str:
    return judged("mask_accuracy", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"denominator": "all pixels", "average": "images"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    percent = mask_accuracy(batch.labels, batch.predicted)
    return partial(batch.image_ids, batch.sample_indices, percent=np.asarray(percent, np.float64))


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_rows(rows, "percent", weights)
