# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance to the real images on the segmenter's pooled features; not FID, whose features differ.

The value grows as the sets shrink, so the protocol fixes both counts. Resampling with repeats makes a set
look smaller yet: replicates are shifted by their mean excess over the value (RECENTRE); their spread stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.frechet import Moments, distances
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.judges import SegmenterCard
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

TITLE = "Fréchet distance on segmenter features"
UNIT, DIRECTION, RANGE = "", "lower", (0.0, float("inf"))
NEEDS, VERSION = "features:segmenter", 1
USES_REFERENCE = RECENTRE = True


def name(card: ProtocolCard) -> str:
    if not isinstance(card.segmenter, SegmenterCard):
        fix = "use fid, whose features are Inception's"
        raise SisError(f"fd of protocol {card.name!r} needs the features of a segmenter that is trained here", fix=fix)
    return f"fd-{card.segmenter.display}"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"covariance": "unbiased", "interval": "recentred percentiles"}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    return partial(batch.image_ids, batch.sample_indices, features=batch.features)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if judge.reference is None or len(judge.reference) < 2:
        raise SisError("a Fréchet distance needs the features of two real images or more", fix="measure the reference")
    x = rows.columns["features"]
    if len(rows) < 2:
        return Finished(np.full(len(weights), np.nan), note="needs two images or more")
    few = f"{len(rows)} images for {x.shape[1]} features: a biased estimate" if len(rows) <= x.shape[1] else ""
    reference = Moments.of(judge.reference.columns["features"])
    return Finished(distances(x, weights[:, rows.by_map()], reference), note=few)
