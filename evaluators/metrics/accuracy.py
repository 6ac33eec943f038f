# SPDX-License-Identifier: Apache-2.0
"""Pixel accuracy of the segmenter's answer over all pixels that are not void (from miou's confusions)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import weighted
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Pixel accuracy"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
SOURCE = "miou"


def name(card: ProtocolCard) -> str:
    return "accuracy"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"denominator": "pixels that are not void"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    n = weighted(rows, weights)
    pixels = n.sum((1, 2))
    hit = np.einsum("rcc->r", n)
    value = 100 * np.divide(hit, pixels, out=np.full(len(n), np.nan), where=pixels > 0)
    return Finished(value, note="" if pixels[:1].any() else "every pixel is void")
