# SPDX-License-Identifier: Apache-2.0
"""Precision (Kynkäänniemi et al. 2019, eq. 1 and 2): the share of images that lie among the real ones.

An image does if it is in the ball about any real image that reaches to that one's third nearest other real image.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.metric import Finished, Judge
from evaluators.neighbours import share_in_balls
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Precision"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, 1.0)
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = True
NEIGHBOURS = 3


def name(card: ProtocolCard) -> str:
    return metric_name("precision", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {**settings_of(card), "neighbours": NEIGHBOURS}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if not len(rows):
        return too_few(weights, 1)
    sets = feature_sets(rows, weights, judge, NEIGHBOURS + 1)
    return Finished(share_in_balls(sets.ours, sets.weights, sets.real, NEIGHBOURS))
