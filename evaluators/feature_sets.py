# SPDX-License-Identifier: Apache-2.0
"""The two sets of feature rows that distribution metrics compare, and the names that follow from the extractor."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard
from sis.errors import SisError, did_you_mean

#: Options of the extractors of evaluators/features, with the values that a card may leave out. They lie here, beside
#: the names that they give to metrics, because naming a metric must not wait for torch.
DEFAULTS: dict[str, dict[str, Any]] = {
    "inception": {"resize": "pytorch-fid", "dims": 2048, "before": None},
    "dinov2": {"variant": "vitl14", "size": 224, "resize": "clean"},
}


def options_of(extractor: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """An extractor's options with its defaults filled in. Raises SisError that names the nearest for an unknown one."""
    known = DEFAULTS.get(extractor)
    if known is None:
        return dict(given)
    for name in given:
        if name not in known:
            raise SisError(
                f"unknown option {name!r}", where=f"evaluators/features/{extractor}.py", fix=did_you_mean(name, known)
            )
    return {**known, **given}


def check_choice(option: str, value: object, choices: tuple[object, ...], where: str) -> None:
    """Raise SisError, with the nearest, for a value that is not one of the choices."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise SisError(f"unknown {option} {value!r}", where=where, fix=did_you_mean(str(value), map(str, choices)))


def metric_name(metric: str, card: ProtocolCard) -> str:
    """A metric's name with what in the extractor is not the default: kid, kid-clean, kid-768, kid-dinov2."""
    features = card.features
    usual = DEFAULTS.get(features.name, {})
    other = [v for k, v in options_of(features.name, features.options).items() if k not in usual or usual[k] != v]
    words = [] if features.name == "inception" else [features.name]
    words += ["".join(c for c in str(value) if c.isalnum()) for value in other]
    return "-".join([metric, *words])


def samples_of(card: ProtocolCard) -> int:
    """How many samples of a label map enter a distribution."""
    return card.samples.distribution or card.samples.quality


def settings_of(card: ProtocolCard) -> dict[str, Any]:
    """The part of the card that the features depend on."""
    return {"extractor": card.features.name, "options": options_of(card.features.name, card.features.options)}


@dataclass(frozen=True)
class FeatureSets:
    """Features of images `(n, d)` and of real images `(m, d)`, float32; weights `(r, n)` of the images' rows."""

    ours: NDArray[np.float32]
    real: NDArray[np.float32]
    weights: NDArray[np.float64]

    @property
    def is_whole(self) -> bool:
        """Whether there is one row of weights and each image counts once: the value, no replicate."""
        return len(self.weights) == 1 and bool((self.weights == 1).all())


def feature_sets(rows: Partial, weights: NDArray, judge: Judge, least: int = 2) -> FeatureSets:
    """The rows that a metric compares. Raises SisError without features of `least` real images."""
    if judge.reference is None or len(judge.reference) < least:
        found = 0 if judge.reference is None else len(judge.reference)
        raise SisError(
            f"the metric needs the features of {least} real images or more, found {found}", fix="measure the reference"
        )
    ours, real = rows.columns["features"], judge.reference.columns["features"]
    weights = np.asarray(weights, np.float64)[:, rows.by_map()]
    card = judge.card
    if card.samples.drawn is None:
        return FeatureSets(ours, real, weights)
    drawn = card.samples.drawn
    times = np.array(times_drawn(len(rows.maps), drawn.images, drawn.seed))
    if times.max() > samples_of(card):
        fix = f"sample {times.max()} images a map, and set `samples.distribution` to that"
        raise SisError(f"a label map was drawn {times.max()} times and has {samples_of(card)} samples", fix=fix)
    taken = rows.sample_indices < times[rows.by_map()]
    real = np.repeat(real, times, axis=0) if card.reference.as_drawn else real
    return FeatureSets(ours[taken], real, weights[:, taken])


@functools.cache
def times_drawn(maps: int, images: int, seed: int) -> tuple[int, ...]:
    """How often each of so many label maps is drawn for so many images, in the order of their ids."""
    counts = [0] * maps
    for place in random.Random(seed).choices(range(maps), k=images):
        counts[place] += 1
    return tuple(counts)


def too_few(weights: NDArray, least: int = 2) -> Finished:
    """What is said of a set that is too small for the metric."""
    return Finished(np.full(len(weights), np.nan), note=f"needs {least} images or more")
