# SPDX-License-Identifier: Apache-2.0
"""Frequency-weighted IoU: as the mean IoU, but each class counts by its share of the labelled pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import frequency_weighted_iou, judged, weighted
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Frequency-weighted intersection over union"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
SOURCE = "miou"


def name(card: ProtocolCard) -> str:
    return judged("fwiou", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"classes": "with labels"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    value = frequency_weighted_iou(weighted(rows, weights))
    return Finished(value, note="every pixel is void" if np.isnan(value[:1]).any() else "")
