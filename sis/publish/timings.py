# SPDX-License-Identifier: Apache-2.0
"""Where the time of an experiment went, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sis.errors import SisError
from sis.publish.context import StageTiming


@dataclass(frozen=True)
class StageSummary:
    """All jobs of one stage: seconds, bytes, and each job's (start, end) in seconds after the first job began."""

    stage: str
    jobs: int
    job_seconds: float
    longest_seconds: float
    longest_name: str
    span_seconds: float
    peak_memory_bytes: int
    hosts: tuple[str, ...]
    intervals: tuple[tuple[float, float], ...]


def summarise(timings: Sequence[StageTiming]) -> list[StageSummary]:
    """Add up the jobs of every stage, in the order in which the stages first began."""
    if not timings:
        return []
    spans = {timing: (_seconds(timing.started, timing), _seconds(timing.ended, timing)) for timing in timings}
    origin = min(start for start, _ in spans.values())
    stages: dict[str, list[StageTiming]] = {}
    for timing in sorted(timings, key=lambda t: (spans[t], t.stage, t.name)):
        stages.setdefault(timing.stage, []).append(timing)
    return [_summary(stage, jobs, spans, origin) for stage, jobs in stages.items()]


def format_duration(seconds: float | None) -> str:
    """Spell out a duration with two units at most: 0.42 s, 38 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None:
        return "–"
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def format_bytes(count: int) -> str:
    """Spell out a size in decimal units; a dash when unknown (0)."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if count else "–"


def _summary(
    stage: str, jobs: list[StageTiming], spans: dict[StageTiming, tuple[float, float]], origin: float
) -> StageSummary:
    longest = max(jobs, key=lambda job: job.seconds)
    intervals = [spans[job] for job in jobs]
    return StageSummary(
        stage=stage,
        jobs=len(jobs),
        job_seconds=sum(job.seconds for job in jobs),
        longest_seconds=longest.seconds,
        longest_name=longest.name,
        span_seconds=max(end for _, end in intervals) - min(start for start, _ in intervals),
        peak_memory_bytes=max(job.peak_memory_bytes for job in jobs),
        hosts=tuple(sorted({job.host for job in jobs})),
        intervals=tuple((start - origin, end - origin) for start, end in intervals),
    )


def _seconds(moment: str, timing: StageTiming) -> float:
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        raise SisError(
            f"not an ISO 8601 time: {moment!r}",
            where=f"timing of {timing.stage}/{timing.name}",
            fix="delete the artefact and run its stage again",
        ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
