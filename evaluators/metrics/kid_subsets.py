# SPDX-License-Identifier: Apache-2.0
"""KID as torch-fidelity estimates it: the mean of the unbiased kernel distances of 100 random subsets of 1000.

For comparison with numbers made so; kid uses all pairs and has an interval. The draw is ours, not torch-fidelity's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.kernel_distance import subset_distances
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Kernel Inception distance, mean of subsets"
UNIT, DIRECTION, RANGE = "", "lower", (-float("inf"), float("inf"))
NEEDS, VERSION = "features:extractor", 1
SOURCE = "fid"
USES_REFERENCE = True
#: Subsets, their size (or that of the smaller set, if less) and the seed of the draw.
SUBSETS, SIZE, SEED = 100, 1000, 0
WEIGHTS = "resampling"


def name(card: ProtocolCard) -> str:
    return metric_name("kid-subsets", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    drawn = {"subsets": SUBSETS, "subset_size": SIZE, "seed": SEED}
    return {**settings_of(card), "kernel": "(x.y / d + 1)^3", "estimate": "mean of subsets", **drawn}


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if len(rows) < 2:
        return too_few(weights)
    sets = feature_sets(rows, weights, judge)
    value = np.full(len(weights), np.nan)  # resampling subsets of resamples: no interval
    size = min(SIZE, len(sets.ours), len(sets.real))
    note = "no interval"
    if sets.is_whole:
        found = subset_distances(sets.ours, sets.real, SUBSETS, size, SEED)
        value[0] = found.mean()
        note = f"{SUBSETS} subsets of {size} that scatter by {found.std():.2g}; no interval"
    return Finished(value, note=note)
