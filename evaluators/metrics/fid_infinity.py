# SPDX-License-Identifier: Apache-2.0
"""FID extrapolated to infinitely many images (Chong and Forsyth 2020), from the features that FID keeps.

FID falls as 1/N with the number of images, so a line through the FIDs of random subsets of several sizes, over 1/N, has
the value of all images that the method could make where 1/N = 0. The bias from the number of real images stays. Where N
is below the number of features the fall is not yet linear, and the value is an indication.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.frechet import Target
from evaluators.frechet_interval import derivatives, expanded
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "FID at infinitely many images"
UNIT, DIRECTION, RANGE = "", "lower", (-float("inf"), float("inf"))
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = True
#: Number of subsets, size of the smallest one (or half of a set with less than twice as many), and seed of the draw.
POINTS, LEAST, SEED = 15, 5000, 0
#: Below that many images there are no subsets to speak of.
_ENOUGH = 4
WEIGHTS = "resampling"


def name(card: ProtocolCard) -> str:
    return metric_name("fid-infinity" if card.features.name == "inception" else "fd-infinity", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {
        **settings_of(card),
        "points": POINTS,
        "smallest": f"the lesser of {LEAST} and half of the images",
        "seed": SEED,
        "interval": "percentiles, first order",
    }


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if len(rows) < _ENOUGH:
        return too_few(weights, _ENOUGH)
    sets = feature_sets(rows, weights, judge)
    n, d = sets.ours.shape
    target, counts = Target.of(sets.real), sizes(n)
    value, slopes = 0.0, np.zeros(n)
    for i, (count, share) in enumerate(zip(counts, intercept(counts), strict=True)):
        chosen = np.sort(np.random.default_rng([SEED, i]).choice(n, count, replace=False))
        subset = sets.ours[chosen]
        value += share * target.distance(subset)
        if not sets.is_whole:
            slopes[chosen] += share * derivatives(subset, target)
    few = f"subsets of {counts[0]} for {d} features: not yet linear in 1/N" if counts[0] <= d else ""
    return Finished(expanded(value, slopes, sets.weights), note=few)


def sizes(n: int) -> list[int]:
    """Sizes of the subsets of n images, evenly spaced; the last is the whole set."""
    return [int(count) for count in np.linspace(min(LEAST, n // 2), n, POINTS)]


def intercept(counts: list[int]) -> NDArray[np.float64]:
    """The share of each subset's value in the least-squares line at 1/N = 0."""
    design = np.stack([np.ones(len(counts)), 1 / np.array(counts, np.float64)], axis=1)
    return np.linalg.pinv(design)[0]
