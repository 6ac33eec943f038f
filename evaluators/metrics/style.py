# SPDX-License-Identifier: Apache-2.0
"""Style similarity S of IIDM: correlation of the colour histograms of an image and its style reference.

The name says which histogram, because IIDM does not. Matching histograms raises it without any style, so compare with
the control that transfers colours alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.colour_histograms import of, similarity
from evaluators.groups import mean_of_rows
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard

TITLE = "Style similarity"
UNIT, DIRECTION, RANGE = "%", "higher", (-100.0, 100.0)
NEEDS, VERSION = "images:reference", 1


def name(card: ProtocolCard) -> str:
    return f"style-{card.iidm.style}"


def settings(card: ProtocolCard) -> dict[str, Any]:
    of(card.iidm.style)
    return {"histogram": card.iidm.style}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    pairs = zip(batch.references, batch.images, strict=True)
    percent = np.array([100 * similarity(judge.card.iidm.style, reference, image) for reference, image in pairs])
    return partial(batch.image_ids, batch.sample_indices, percent=percent)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_rows(rows, "percent", weights)
