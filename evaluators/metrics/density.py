# SPDX-License-Identifier: Apache-2.0
"""Density (Naeem et al. 2020, eq. 4): how many balls about real images an image lies inside, as a share of k = 5.

Unlike precision one outlier among the real images, with its wide ball, counts little. It may exceed 1.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.metric import Finished, Judge
from evaluators.neighbours import density
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Density"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, float("inf"))
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = True
NEIGHBOURS = 5


def name(card: ProtocolCard) -> str:
    return metric_name("density", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {**settings_of(card), "neighbours": NEIGHBOURS}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if not len(rows):
        return too_few(weights, 1)
    sets = feature_sets(rows, weights, judge, NEIGHBOURS + 1)
    return Finished(density(sets.ours, sets.weights, sets.real, NEIGHBOURS))
