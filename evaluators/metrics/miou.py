# SPDX-License-Identifier: Apache-2.0
"""Mean intersection over union: does the segmenter find in the images what their label maps ask for?

One confusion matrix over the whole set, never a mean of images. The class rule decides what happens to
classes that do not occur: "union" (DRN, mmsegmentation) averages classes with labels or predictions, "gt"
(deeplab-pytorch) those with labels, "all" (CSAIL) every class, where an absent one counts 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.confusion import confusions, weighted
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard

TITLE = "Mean intersection over union"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "labels:segmenter", 1
CLASS_METRIC = "iou"


def name(card: ProtocolCard) -> str:
    return "miou"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"class_rule": card.class_rule}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    counts = confusions(batch.labels, batch.predicted, judge.labels)
    return partial(batch.image_ids, batch.sample_indices, confusion=counts)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    n = weighted(rows, weights)
    hit = np.einsum("rcc->rc", n)
    truth, union = n.sum(2), n.sum(2) + n.sum(1) - hit
    iou = 100 * np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)
    counted = {"union": union > 0, "gt": truth > 0, "all": np.ones_like(union, bool)}[judge.card.class_rule]
    total = counted.sum(1)
    mean = np.divide((iou * counted).sum(1), total, out=np.full(len(n), np.nan), where=total > 0)
    names = [judge.labels.classes[i].name for i in judge.labels.evaluated_ids]
    classes = np.where(counted, iou, np.nan)
    note = f"{int(total[0])} of {len(names)} classes" if len(total) else ""
    return Finished(mean, {label: classes[:, i] for i, label in enumerate(names)}, note)
