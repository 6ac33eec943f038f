# SPDX-License-Identifier: Apache-2.0
"""A cost plan in words and numbers: a table for people, JSON for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sis.project.cost import Cost, CostPlan, stored, total
from sis.project.cost_work import Step

_STEPS: dict[Step, str] = {
    "prepare": "prepare", "decode": "decoded copies", "describe": "dataset cards", "import": "import",
    "train": "train", "average": "average", "encode": "encode", "prior": "prior", "sample": "sample",
    "judge": "train segmenter", "reference": "measure reference", "measure": "measure", "score": "score",
    "publish": "publish",
}  # fmt: skip
_HEAD = ("stage", "to make", "finished", "jobs", "arrays", "GPU-hours", "CPU-hours", "storage", "hours from")
#: Steps of the critical path that are spelled out.
_SHOWN = 12


def plan_text(found: CostPlan) -> str:
    """A table by stage, the totals, the critical path, and what is longer than its time limit."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for step, title in _STEPS.items():
        costs = [cost for cost in found.costs if cost.work.step == step]
        finished = found.finished.get(step, 0)
        if costs or finished:
            rows.append(_row(title, costs, finished))
    rows.append((*_row("total", found.costs, sum(found.finished.values()))[:-1], ""))
    lines = [f"{found.experiment}: nothing is submitted", "", *_aligned(rows), ""]
    return "\n".join(line.rstrip() for line in [*lines, *_path(found.path), *_limits(found), *_notes(found)])


def plan_data(found: CostPlan) -> dict[str, Any]:
    """The same as plain JSON data; every piece of unfinished work by itself."""
    gpu, cpu = total(found.costs)
    size, more = stored(found.costs)
    return {
        "experiment": found.experiment,
        "work": [_facts(cost) for cost in found.costs],
        "finished": dict(found.finished),
        "jobs": sum(cost.work.jobs for cost in found.costs),
        "gpu_hours": gpu,
        "cpu_hours": cpu,
        "storage_bytes": size,
        "storage_is_complete": not more,
        "critical_path": [{"title": cost.work.title, "hours": cost.hours} for cost in found.path],
        "critical_path_hours": math.fsum(cost.hours for cost in found.path),
        "over_limit": [cost.work.title for cost in found.over_limit],
    }


def format_hours(hours: float) -> str:
    """137, 4.2, 0.05; `<0.01` for less than 36 seconds."""
    if hours == 0:
        return "0"
    if hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 99.5 else f"{hours:.3g}" if hours >= 1 else f"{hours:.2f}"


def format_size(count: float) -> str:
    """A size in decimal units: 12 MB."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _row(title: str, costs: Sequence[Cost], finished: int) -> tuple[str, ...]:
    gpu, cpu = total(costs)
    arrays = [cost.work.members for cost in costs if cost.work.members]
    size, more = stored(costs)
    kinds = {cost.storage_source for cost in costs}
    storage = ("≤ " if any(kind.startswith("at most") for kind in kinds) else "") + format_size(size)
    if more:
        storage = f"{storage} + ?" if size else "?"
    return (
        title,
        f"{len(costs):,}",
        f"{finished:,}",
        f"{sum(cost.work.jobs for cost in costs):,}",
        f"{len(arrays):,} of {sum(arrays):,}" if arrays else "",
        (_bound(costs) if gpu else "") + format_hours(gpu),
        (_bound(costs) if cpu else "") + format_hours(cpu),
        storage if size or more else "",
        _sources(costs),
    )


def _bound(costs: Sequence[Cost]) -> str:
    return "≤ " if any(cost.work.needs and not cost.measured for cost in costs) else ""


def _sources(costs: Sequence[Cost]) -> str:
    counts = Counter(cost.source for cost in costs)
    words = {"here": "no job of its own"}
    if len(counts) == 1:
        return words.get(next(iter(counts)), next(iter(counts)))
    return ", ".join(f"{number}: {words.get(source, source)}" for source, number in sorted(counts.items()))


def _path(path: Sequence[Cost]) -> list[str]:
    chain = [cost for cost in path if cost.work.needs]
    if not chain:
        return ["critical path: none, nothing is left for a cluster"]
    hours = math.fsum(cost.hours for cost in chain)
    lines = [f"critical path: {_bound(chain)}{format_hours(hours)} hours, with a node for every job"]
    for cost in chain[:_SHOWN]:
        lines.append(f"  {format_hours(cost.hours):>6}  {cost.work.title} ({cost.source})")
    return lines + ([f"  and {len(chain) - _SHOWN} more"] if len(chain) > _SHOWN else [])


def _limits(found: CostPlan) -> list[str]:
    longest = found.longest
    if longest is None:
        return []
    hours, limit = format_hours(longest.job_hours), format_hours(longest.work.limit)
    lines = [f"longest job: {hours} hours, {longest.work.title} ({longest.source}); its time limit is {limit} hours"]
    for cost in found.over_limit:
        job, limit = format_hours(cost.job_hours), format_hours(cost.work.limit)
        what = f"{cost.work.title}: {job} hours, more than its limit of {limit}"
        if cost.work.step in ("train", "sample"):
            lines.append(
                f"note: {what}; it saves and queues again {math.ceil(cost.job_hours / cost.work.limit) - 1} times"
            )
        else:
            stage = cost.work.step if cost.work.step in ("prepare", "encode", "prior") else "evaluate"
            lines.append(f"bad: {what}; raise `cluster: {{{stage}: {{hours: ...}}}}`")
    return lines


def _notes(found: CostPlan) -> list[str]:
    jobs = [cost for cost in found.costs if cost.work.needs]
    lines = ["note: the start of a job is not counted, nor is waiting in the queue"] if jobs else []
    if any(not cost.measured for cost in jobs):
        lines.append("note: card's limit is how long one job may run; what takes longer queues again and costs more")
    return lines


def _facts(cost: Cost) -> dict[str, Any]:
    work = cost.work
    return {
        "step": work.step,
        "title": work.title,
        "path": work.path,
        "jobs": work.jobs,
        "array_members": work.members,
        "needs": work.needs.model_dump() if work.needs else None,
        "job_hours": cost.job_hours,
        "hours": cost.hours,
        "gpu_hours": cost.gpu_hours,
        "cpu_hours": cost.cpu_hours,
        "hours_from": cost.source,
        "storage_bytes": cost.storage,
        "storage_from": cost.storage_source,
    }


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        lines.append("  ".join(cells))
    return lines
