# SPDX-License-Identifier: Apache-2.0
"""FID: the squared Fréchet distance to the real images on Inception features (Heusel et al. 2017).

Called fid with pytorch-fid's resizer and 2048 features, fid-clean, fid-tf1, fid-sdm256, fid-768 ... with others, and
fd-<name> with another extractor. The value grows as either set shrinks, so the protocol fixes both counts; replicates
are shifted by their mean excess over the value (RECENTRE), their spread stays (see frechet_interval.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.feature_sets import feature_sets, metric_name, samples_of, settings_of, too_few
from evaluators.frechet import Target
from evaluators.frechet_interval import is_exact, replicates
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard

TITLE = "Fréchet Inception distance"
UNIT, DIRECTION, RANGE = "", "lower", (0.0, float("inf"))
NEEDS, VERSION = "features:extractor", 1
USES_REFERENCE = RECENTRE = True
WEIGHTS = "resampling"


def name(card: ProtocolCard) -> str:
    return metric_name("fid" if card.features.name == "inception" else "fd", card)


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {
        **settings_of(card),
        "covariance": "unbiased (n - 1), accumulated in float64",
        "trace": "symmetric eigenvalues, nothing added",
        "interval": "recentred percentiles, first order below 10 images a feature",
    }


def map_settings(card: ProtocolCard) -> dict[str, Any]:
    return settings_of(card)


def samples(card: ProtocolCard) -> int:
    return samples_of(card)


def map(batch: Batch, judge: Judge) -> Partial:
    return partial(batch.image_ids, batch.sample_indices, features=batch.features)


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    if len(rows) < 2:
        return too_few(weights)
    sets = feature_sets(rows, weights, judge)
    n, d = sets.ours.shape
    exact = is_exact(n, d, judge.card.bootstrap.replicates)
    if sets.is_whole:
        value = np.array([Target.of(sets.real).distance(sets.ours)])
    else:
        value = replicates(sets.ours, sets.weights, sets.real, exact)
    least = min(n, len(sets.real))
    few = f"{n} images, {len(sets.real)} real ones for {d} features: a biased estimate; " if least <= d else ""
    return Finished(value, note=f"{few}{'exact' if exact else 'first-order'} bootstrap")
