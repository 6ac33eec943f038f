# SPDX-License-Identifier: Apache-2.0
"""Label maps drawn with replacement: which samples count how often, and what a protocol says of it."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from evaluators.feature_sets import feature_sets, times_drawn
from evaluators.frechet import Target
from evaluators.metric import Judge
from evaluators.metrics import fid
from evaluators.partial import Partial, partial
from sis.config.files import label_space, named
from sis.config.protocols import DrawCard, ProtocolCard
from sis.errors import SisError

MAPS, SAMPLES, WIDTH = 6, 8, 3
DRAW = DrawCard(images=20, seed=5)


def card(as_drawn: bool = False, distribution: int = SAMPLES, drawn: DrawCard | None = DRAW) -> ProtocolCard:
    base = named("protocols", "scenes-tiny", ProtocolCard).model_dump()
    samples = base["samples"] | {"distribution": distribution, "drawn": drawn and drawn.model_dump()}
    reference = {"split": "val", "count": None, "as_drawn": as_drawn}
    return ProtocolCard.model_validate(base | {"samples": samples, "reference": reference})


def rows(samples: int, seed: int) -> Partial:
    keys = [(f"map-{i}", k) for i in range(MAPS) for k in range(samples)]
    features = np.random.default_rng(seed).normal(size=(len(keys), WIDTH)).astype(np.float32)
    return partial([i for i, _ in keys], [k for _, k in keys], features=features)


def judge(protocol: ProtocolCard) -> Judge:
    return Judge(protocol, label_space("scenes"), reference=rows(1, 2))


def test_maps_are_drawn_as_python_draws_them() -> None:
    counted = Counter(random.Random(5).choices(range(MAPS), k=20))
    assert times_drawn(MAPS, 20, 5) == tuple(counted[i] for i in range(MAPS))
    assert sum(times_drawn(MAPS, 20, 5)) == 20
    assert times_drawn(MAPS, 20, 6) != times_drawn(MAPS, 20, 5)


@pytest.mark.parametrize("as_drawn", [False, True])
def test_the_distance_is_that_of_the_drawn_samples(as_drawn: bool) -> None:
    made, times = rows(SAMPLES, 1), times_drawn(MAPS, 20, 5)
    here = judge(card(as_drawn))
    ours = np.concatenate([made.columns["features"][i * SAMPLES : i * SAMPLES + n] for i, n in enumerate(times)])
    real = rows(1, 2).columns["features"]
    real = np.concatenate([real[i : i + 1].repeat(n, 0) for i, n in enumerate(times)]) if as_drawn else real
    sets = feature_sets(made, np.ones((1, MAPS)), here)
    assert np.array_equal(sets.ours, ours) and np.array_equal(sets.real, real) and sets.is_whole
    value = fid.finish(made, np.ones((1, MAPS)), here).value[0]
    assert value == pytest.approx(Target.of(real).distance(ours), rel=1e-12)
    assert value != pytest.approx(fid.finish(made, np.ones((1, MAPS)), judge(card(drawn=None))).value[0], rel=1e-3)


def test_weights_follow_the_maps() -> None:
    made, times = rows(SAMPLES, 1), times_drawn(MAPS, 20, 5)
    weights = np.arange(MAPS, dtype=float)[None]
    assert feature_sets(made, weights, judge(card())).weights.tolist() == [
        [float(i) for i, n in enumerate(times) for _ in range(n)]
    ]


def test_too_few_samples_are_refused_with_the_number_that_is_needed() -> None:
    most = max(times_drawn(MAPS, 20, 5))
    with pytest.raises(SisError, match=rf"drawn {most} times and has {most - 1} samples.*sample {most} images a map"):
        feature_sets(rows(most - 1, 1), np.ones((1, MAPS)), judge(card(distribution=most - 1)))


def test_photographs_count_as_drawn_only_where_maps_are() -> None:
    with pytest.raises(ValidationError, match=r"as_drawn needs `samples\.drawn`"):
        card(as_drawn=True, drawn=None)
