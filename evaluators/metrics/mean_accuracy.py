# SPDX-License-Identifier: Apache-2.0
"""Mean accuracy: the share of its pixels that the segmenter finds, averaged over classes that have any."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import class_accuracy, judged, mean_of_classes, weighted
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Mean class accuracy"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
SOURCE = "miou"


def name(card: ProtocolCard) -> str:
    return judged("mean_accuracy", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"classes": "with labels"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    value = mean_of_classes(class_accuracy(weighted(rows, weights)))
    return Finished(value, note="every pixel is void" if np.isnan(value[:1]).any() else "")
