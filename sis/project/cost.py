# SPDX-License-Identifier: Apache-2.0
"""`sis plan`: what an experiment costs on a cluster, before anything is submitted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sis.config.files import dataset_card
from sis.plan import Plan
from sis.project.cost_measured import Measurements
from sis.project.cost_work import Step, Work, all_work
from sis.project.fit_defaults import fit_defaults

#: Bytes a parameter of a training's resumable state, and how many states lie beside one another.
_STATE_BYTES, _STATES = 20, 2
#: Most bytes a pixel: three of colour; a pair has a label too.
_IMAGE_BYTES, _PAIR_BYTES = 3, 4
_CARD = "card's limit"


@dataclass(frozen=True)
class Cost:
    """What one piece of work costs.

    job_hours: of its longest job. hours: from its start to its end, all jobs of an array that run at a time. source:
    where the hours come from. storage: bytes, None where nobody knows. storage_source: where that comes from.
    """

    work: Work
    job_hours: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    source: str = ""
    storage: float | None = 0.0
    storage_source: str = ""

    @property
    def measured(self) -> bool:
        """Whether the hours come from what alike work took."""
        return self.source.startswith("measured")


@dataclass(frozen=True)
class CostPlan:
    """The costs of an experiment's unfinished work.

    finished: number of artefacts by step that are there. path: the chain of unfinished work that takes longest.
    """

    experiment: str
    costs: list[Cost]
    finished: dict[Step, int]
    path: list[Cost]

    @property
    def longest(self) -> Cost | None:
        """The work with the longest single job."""
        return max((c for c in self.costs if c.work.needs), key=lambda cost: cost.job_hours, default=None)

    @property
    def over_limit(self) -> list[Cost]:
        """Work whose jobs take longer than their time limit."""
        return [c for c in self.costs if c.work.needs and c.job_hours > c.work.limit]


def cost_plan(plan: Plan) -> CostPlan:
    """Estimate every unfinished artefact of a plan; reads manifests only, submits nothing."""
    work, measured = all_work(plan), Measurements(Path(plan.root))
    costs = {one.path: _cost(one, measured, plan.settings.slurm.array_jobs) for one in work if not one.finished}
    finished: dict[Step, int] = {}
    for one in work:
        if one.finished:
            finished[one.step] = finished.get(one.step, 0) + 1
    return CostPlan(plan.experiment.name, list(costs.values()), finished, critical_path(costs))


def critical_path(costs: dict[str, Cost]) -> list[Cost]:
    """The chain of work that takes longest when every job starts as soon as what it reads is there.

    costs: by the path of the artefact; what is read and has no cost is there already.
    """
    longest: dict[str, tuple[float, list[Cost]]] = {}

    def until(path: str) -> tuple[float, list[Cost]]:
        if path not in longest:
            before = max((until(d) for d in costs[path].work.deps if d in costs), key=lambda b: b[0], default=(0.0, []))
            longest[path] = (before[0] + costs[path].hours, [*before[1], costs[path]])
        return longest[path]

    return max((until(path) for path in costs), key=lambda found: found[0], default=(0.0, []))[1]


def total(costs: Iterable[Cost]) -> tuple[float, float]:
    """GPU-hours and CPU-hours."""
    every = list(costs)
    return math.fsum(c.gpu_hours for c in every), math.fsum(c.cpu_hours for c in every)


def stored(costs: Sequence[Cost]) -> tuple[float, bool]:
    """Bytes, and whether there is more that nobody knows."""
    return math.fsum(c.storage or 0.0 for c in costs), any(c.storage is None for c in costs)


def _cost(work: Work, measured: Measurements, array_jobs: int) -> Cost:
    storage, storage_source = _storage(work, measured)
    needs = work.needs
    if needs is None:
        return Cost(work, storage=storage, storage_source=storage_source, source="here")
    found, jobs = measured.hours(work), work.members or 1
    processes = (needs.nodes or 1) * (needs.tasks or 1) if work.step == "train" else 1
    # Several processes are taken to share a training evenly, and the jobs of an array its shards.
    job_hours = found.amount / processes / jobs if found else work.limit
    if found and work.members:
        job_hours *= math.ceil(work.shards / work.members) * work.members / work.shards
    waves = math.ceil(jobs / array_jobs) if work.members else 1
    total_hours = found.amount / processes if found else job_hours * jobs
    nodes, cpus = needs.nodes or 1, (needs.cpus or 1) * (needs.tasks or 1)
    return Cost(
        work,
        job_hours,
        job_hours * waves,
        total_hours * nodes * (needs.gpus or 0),
        total_hours * nodes * cpus,
        found.source if found else _CARD,
        storage,
        storage_source,
    )


def _storage(work: Work, measured: Measurements) -> tuple[float | None, str]:
    """Bytes of an artefact and of what lies beside it while it is made; None when nothing is known."""
    found, spec = measured.size(work), work.spec
    pixels = math.prod(dataset_card(work.dataset).size) if work.dataset else 0
    if work.step == "train" and spec is not None:
        parameters = measured.parameters(spec)
        if not (found and parameters):
            return None, "unknown"
        kept = fit_defaults(spec.method.path) | spec.fit
        models = found.amount * (1 + len(kept.get("keep") or ()) + bool(kept.get("keep_raw")))
        return models + _STATES * _STATE_BYTES * parameters, "measured, with states"
    if found is not None:
        return found.amount, found.source
    if work.step in ("prepare", "decode"):
        return float(work.images * pixels * _PAIR_BYTES), "at most, by size"
    if work.step in ("sample", "import") and work.images:
        return float(work.images * pixels * _IMAGE_BYTES), "at most, by size"
    return (0.0, "") if work.step in ("describe", "publish", "score") else (None, "unknown")
