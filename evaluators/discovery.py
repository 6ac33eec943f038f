# SPDX-License-Identifier: Apache-2.0
"""Finds metrics, segmenters and feature extractors by file stem; there is no list to keep."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from evaluators import partial
from evaluators.metric import Finished, Metric
from evaluators.partial import Partial
from sis.config.judges import FeaturesCard
from sis.config.protocols import ProtocolCard
from sis.errors import SisError, did_you_mean


@dataclass(frozen=True)
class MetricFile:
    """A metric's module with its optional parts filled in."""

    stem: str
    module: Metric

    @property
    def source(self) -> str:
        """Stem of the metric whose partial this one reads."""
        return getattr(self.module, "SOURCE", self.stem)

    @property
    def class_metric(self) -> str:
        """Name of the per-class rows, empty without."""
        return getattr(self.module, "CLASS_METRIC", "")

    @property
    def recentre(self) -> bool:
        """Whether bootstrap replicates are shifted to scatter about the value."""
        return getattr(self.module, "RECENTRE", False)

    @property
    def uses_reference(self) -> bool:
        """Whether real images are compared with."""
        return getattr(self.module, "USES_REFERENCE", False)

    @property
    def parts(self) -> tuple[str, ...]:
        """Stems of the metrics whose values this one combines, empty for a metric of its own."""
        return getattr(self.module, "PARTS", ())

    @property
    def combine(self) -> Callable[[dict[str, Finished], ProtocolCard], Finished]:
        """How a metric with parts makes its value from theirs."""
        return vars(self.module)["combine"]

    def features(self, card: ProtocolCard) -> FeaturesCard:
        """The extractor that it looks at: the protocol's, unless its file says otherwise."""
        chosen = getattr(self.module, "features", None)
        return card.features if chosen is None else chosen(card)

    def map_settings(self, card: ProtocolCard) -> dict[str, Any]:
        """The part of its settings that its partial depends on: all, unless its file says otherwise."""
        chosen = getattr(self.module, "map_settings", None)
        return self.module.settings(card) if chosen is None else chosen(card)

    @property
    def merge(self) -> Callable[[Sequence[Partial]], Partial]:
        """How the partials of two shards become one."""
        return getattr(self.module, "merge", partial.merge)


def stems(kind: str) -> list[str]:
    """Names of the files in evaluators/<kind>, sorted."""
    folder = Path(__file__).parent / kind
    return sorted(f.stem for f in folder.glob("*.py") if not f.stem.startswith("_"))


def find_metric(name: str) -> MetricFile:
    """Import the metric `name`. Raises SisError with the nearest names when there is none."""
    return MetricFile(name, cast(Metric, _import("metrics", name)))


def find_segmenter(name: str) -> ModuleType:
    """Import the segmenter `name`. Raises SisError with the nearest names when there is none."""
    return _import("segmenters", name)


def find_extractor(name: str) -> ModuleType:
    """Import the feature extractor `name`. Raises SisError with the nearest names when there is none."""
    return _import("features", name)


def _import(kind: str, name: str) -> ModuleType:
    known = stems(kind)
    if name not in known:
        what = "feature extractor" if kind == "features" else kind[:-1]
        raise SisError(f"unknown {what} {name!r}", where=f"evaluators/{kind}", fix=did_you_mean(name, known))
    return importlib.import_module(f"evaluators.{kind}.{name}")
