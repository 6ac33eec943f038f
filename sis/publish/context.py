# SPDX-License-Identifier: Apache-2.0
"""What publishing needs besides scores: pictures, timings, commands, protocols, papers' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from sis.data.image_set import ImageSet
from sis.data.labels import LabelSpace
from sis.data.pairs import PairSet
from sis.publish.sweeps import Sweep


@dataclass(frozen=True)
class DatasetPublish:
    """The pictures of one dataset: judged split, image sets by run id, label table."""

    pairs: PairSet
    image_sets: Mapping[str, ImageSet]
    labels: LabelSpace


@dataclass(frozen=True)
class StageTiming:
    """One finished job: seconds of wall time, ISO 8601 start and end, peak memory in bytes (0 = unknown)."""

    stage: str
    name: str
    seconds: float
    started: str
    ended: str
    peak_memory_bytes: int
    host: str


@dataclass(frozen=True)
class PublishContext:
    """Everything that one experiment's tables, pictures and page show besides the scores.

    datasets: by dataset name (a dataset without entry gets no pictures); commands: shell command by run id;
    protocols: readable JSON by protocol id; published: numbers of config/published/, or None; groups: by run id, the
    group of runs that differ in their training seed alone; sweeps: plots against a parameter.
    """

    experiment: str
    title: str
    description: str = ""
    datasets: Mapping[str, DatasetPublish] = field(default_factory=dict)
    timings: Sequence[StageTiming] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    published: pd.DataFrame | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    sweeps: Sequence[Sweep] = ()
