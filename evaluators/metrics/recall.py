# SPDX-License-Identifier: Apache-2.0
"""Recall (Kynkäänniemi et al. 2019, eq. 1 and 2): the share of real images that lie among the generated ones.

A real image does if it is in the ball about any image that reaches to that one's third nearest other image. Balls of a
resample are those of the whole set about the images that were drawn; replicates are recentred, for there are fewer.
The interval is approximate: for 150 Gaussian rows of 64 features replicates scatter 0.7 times as widely as new samples.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.metric import Finished, Judge
from evaluators.neighbours import share_in_weighted_balls
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Recall"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, 1.0)
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = RECENTRE = True
NEIGHBOURS = 3


def name(card: ProtocolCard) -> str:
    return metric_name("recall", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {**settings_of(card), "neighbours": NEIGHBOURS, "interval": "recentred percentiles, balls of the whole set"}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if len(rows) <= NEIGHBOURS:
        return too_few(weights, NEIGHBOURS + 1)
    sets = feature_sets(rows, weights, judge)
    return Finished(share_in_weighted_balls(sets.real, sets.ours, sets.weights, NEIGHBOURS))
