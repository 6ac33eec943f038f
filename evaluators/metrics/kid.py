# SPDX-License-Identifier: Apache-2.0
"""KID: the squared kernel distance (MMD) to the real images (Bińkowski et al. 2018), over all pairs, unbiased.

torch-fidelity and its users average 100 random subsets of 1000 instead, an estimate of the same quantity that depends
on the draw: that is the metric kid_subsets.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.kernel_distance import kernel_distances
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Kernel Inception distance"
UNIT, DIRECTION, RANGE = "", "lower", (-float("inf"), float("inf"))
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = True
WEIGHTS = "resampling"


def name(card: ProtocolCard) -> str:
    return metric_name("kid", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {**settings_of(card), "kernel": "(x.y / d + 1)^3", "estimate": "all pairs, unbiased"}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if len(rows) < 2:
        return too_few(weights)
    sets = feature_sets(rows, weights, judge)
    return Finished(kernel_distances(sets.ours, sets.weights, sets.real))
