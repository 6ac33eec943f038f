# SPDX-License-Identifier: Apache-2.0
"""Coverage (Naeem et al. 2020, eq. 5): the share of real images that have a generated one inside their ball, k = 5.

Balls reach to the fifth nearest other real image. A resample holds fewer distinct images: replicates are recentred.
The interval is approximate: for 150 Gaussian rows of 64 features replicates scatter 1.4 times as widely as new samples.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.metric import Finished, Judge
from evaluators.neighbours import coverage
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Coverage"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, 1.0)
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = RECENTRE = True
NEIGHBOURS = 5


def name(card: ProtocolCard) -> str:
    return metric_name("coverage", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {**settings_of(card), "neighbours": NEIGHBOURS, "interval": "recentred percentiles"}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if not len(rows):
        return too_few(weights, 1)
    sets = feature_sets(rows, weights, judge, NEIGHBOURS + 1)
    return Finished(coverage(sets.ours, sets.weights, sets.real, NEIGHBOURS))
