# SPDX-License-Identifier: Apache-2.0
"""Finds metrics and segmenters by file stem; there is no list to keep."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

from evaluators import partial
from evaluators.metric import Metric
from evaluators.partial import Partial
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


def _import(kind: str, name: str) -> ModuleType:
    known = stems(kind)
    if name not in known:
        raise SisError(f"unknown {kind[:-1]} {name!r}", where=f"evaluators/{kind}", fix=did_you_mean(name, known))
    return importlib.import_module(f"evaluators.{kind}.{name}")
