# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union: does the segmenter find in the images what their label maps ask for?

One confusion matrix over the whole set, never a mean of images; evaluators/confusion.py explains the class rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import class_iou, confusions, judged, mean_of_classes, rule_of, weighted
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard

TITLE = "Mean intersection over union"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
CLASS_METRIC = "iou"


def name(card: ProtocolCard) -> str:
    return judged("miou", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"class_rule": rule_of(card)}


def map_settings(card: ProtocolCard) -> dict[str, Any]:
    return {}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    counts = confusions(batch.labels, batch.predicted, judge.labels)
    return partial(batch.image_ids, batch.sample_indices, confusion=counts)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    classes = class_iou(weighted(rows, weights), rule_of(judge.card))
    names = [judge.labels.classes[i].name for i in judge.labels.evaluated_ids]
    note = f"{int((~np.isnan(classes[0])).sum())} of {len(names)} classes" if len(classes) else ""
    return Finished(mean_of_classes(classes), {label: classes[:, i] for i, label in enumerate(names)}, note)
