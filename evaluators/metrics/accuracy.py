# SPDX-License-Identifier: Apache-2.0
"""Pixel accuracy of the segmenter's answer over all pixels that are not void (from miou's confusions)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import judged, pixel_accuracy, weighted
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Pixel accuracy"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
SOURCE = "miou"


def name(card: ProtocolCard) -> str:
    return judged("accuracy", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"denominator": "pixels that are not void"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    value = pixel_accuracy(weighted(rows, weights))
    return Finished(value, note="every pixel is void" if np.isnan(value[:1]).any() else "")
