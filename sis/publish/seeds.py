# SPDX-License-Identifier: Apache-2.0
"""Means over training seeds, and differences of such means, with intervals that hold seeds and label maps alike.

Two things make a number accidental: which seed the training had, and which label maps were drawn. The half width of an
interval here is sqrt(S^2 + M^2): S is that of Student's t interval over the k seeds' values (k - 1 degrees of freedom),
M, above and below, that of the bootstrap over label maps of the mean over seeds. Such a sum covers at least 95 % where
the parts are independent (Banerjee 1960), and it is never narrower than either. All runs under one protocol id share
the label maps of every replicate, and groups share training seeds, so a difference of two groups is taken seed by seed
and map by map.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from sis.errors import SisError
from sis.publish.columns import Column, decimal_places
from sis.publish.ranking import CONFIDENCE, UNRANKED, Standing, placed
from sis.publish.tables import Cell, Row, Table, in_order

LEGEND = (
    "Means over training seeds. Brackets: 95 % interval over training seeds and label maps (controls: label maps). "
    "Bold: the best group and all it does not beat significantly (differences seed by seed and label map by label map "
    "whose interval excludes 0). Underlined: the same among the rest. Not corrected for the number of comparisons."
)


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds: its 95 % interval (None: unknown) and the standard deviation between seeds."""

    value: float
    low: float | None
    high: float | None
    deviation: float

    @property
    def beyond_chance(self) -> bool:
        """Of a difference: the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` (names of groups) in one column: of each seed that both have, and their mean."""

    column: str
    first: str
    second: str
    seeds: tuple[int, ...]
    gaps: tuple[float, ...]
    estimate: Estimate

    def turned(self) -> Difference:
        """`second` minus `first`."""
        low, high = self.estimate.low, self.estimate.high
        ends = (None, None) if low is None or high is None else (-high, -low)
        estimate = Estimate(-self.estimate.value, *ends, self.estimate.deviation)
        return Difference(self.column, self.second, self.first, self.seeds, tuple(-gap for gap in self.gaps), estimate)

    def wins(self, direction: str) -> int:
        """Seeds in which `first` is better by value alone, where "higher" or "lower" is."""
        return sum(gap > 0 if direction == "higher" else gap < 0 for gap in self.gaps)


@dataclass(frozen=True)
class OverSeeds:
    """One row a group of runs that differ in their training seed alone, and all differences of two groups."""

    table: Table
    seeds: Mapping[str, tuple[int, ...]]
    differences: tuple[Difference, ...]

    @property
    def compared(self) -> list[Column]:
        """The columns that have differences."""
        keys = {difference.column for difference in self.differences}
        return [column for column in self.table.columns if column.key in keys]


@dataclass(frozen=True)
class _Numbers:
    """What one group has in one column: by training seed, the value and the replicates of its label maps."""

    values: Mapping[int, float]
    replicates: Mapping[int, NDArray[np.float64]]


def mean_over_seeds(values: Sequence[float], replicates: Sequence[NDArray[np.float64]]) -> Estimate:
    """Average one number over training seeds.

    Args:
        values: the number of each seed, two or more.
        replicates: `(r,)` of each seed, from the same label-map weights; undefined ones are NaN.

    Raises SisError for fewer than two seeds and for replicates that cannot be paired. Without two replicates that are
    defined for every seed there is no interval.
    """
    if len(values) < 2:
        raise SisError("a mean over training seeds needs two of them or more")
    if len({len(one) for one in replicates}) > 1:
        raise SisError(
            "bootstrap replicates of two training seeds cannot be paired",
            fix="evaluate all runs again under the same protocol",
        )
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    maps = np.mean(np.stack(list(replicates)), axis=0)
    maps = maps[np.isfinite(maps)]
    if maps.size < 2:
        return Estimate(mean, None, None, deviation)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(maps, [tail, 1 - tail]))
    seeds = float(stdtrit(len(values) - 1, 1 - tail)) * deviation / math.sqrt(len(values))
    below, above = math.hypot(seeds, max(mean - low, 0.0)), math.hypot(seeds, max(high - mean, 0.0))
    return Estimate(mean, mean - below, mean + above, deviation)


def over_seeds(table: Table, scores: pd.DataFrame, groups: Mapping[str, str]) -> OverSeeds | None:
    """Average the runs of each group; None when no group has two runs in this table.

    table: the comparison of all runs; scores: its rows of the scores schema; groups: group by run id.
    """
    members: dict[str, list[Row]] = {}
    for row in table.rows:
        if groups.get(row.run_id):
            members.setdefault(groups[row.run_id], []).append(row)
    members = {name: sorted(rows, key=lambda r: (r.seed or 0, r.run_id)) for name, rows in members.items()}
    members = {name: rows for name, rows in sorted(members.items()) if len(rows) > 1}
    if not members:
        return None
    numbers = {column.key: _numbers(scores, column, members) for column in table.columns}
    differences = [d for column in table.columns for d in _differences(column, numbers[column.key])]
    standings = {column.key: _standings(column, numbers[column.key], differences, members) for column in table.columns}
    titles = _titles(scores, members)
    rows = [_group_row(name, titles[name], table.columns, runs, numbers, standings) for name, runs in members.items()]
    grouped = {row.run_id for runs in members.values() for row in runs}
    means = Table(
        caption=f"{table.caption}, means over training seeds",
        dataset=table.dataset,
        protocol=table.protocol,
        columns=tuple(_rounded(column, numbers[column.key], differences) for column in table.columns),
        contestants=tuple(row for row in rows if row.role == "contestant"),
        controls=tuple(row for row in rows if row.role != "contestant")
        + tuple(row for row in table.controls if row.run_id not in grouped),
        legend=LEGEND,
    )
    means = in_order(means)
    place = {row.run: number for number, row in enumerate(means.rows)}
    return OverSeeds(
        means,
        {name: tuple(row.seed or 0 for row in runs) for name, runs in members.items()},
        _in_rows(differences, place),
    )


def _numbers(scores: pd.DataFrame, column: Column, members: Mapping[str, list[Row]]) -> dict[str, _Numbers]:
    """The numbers of every group in one column; groups in which a seed has none are left out."""
    here = scores.loc[
        (scores["class_name"] == "")
        & (scores["metric"] == column.metric)
        & (scores["protocol_id"] == column.protocol_id)
        & scores["value"].notna()
    ]
    by_run = {str(row["run_id"]): row for row in here.to_dict("records")}
    found: dict[str, _Numbers] = {}
    for name, runs in members.items():
        rows = {run.seed or 0: by_run[run.run_id] for run in runs if run.run_id in by_run}
        if len(rows) == len(runs):
            found[name] = _Numbers(
                {seed: float(row["value"]) for seed, row in rows.items()},
                {seed: np.asarray(row["replicates"], dtype=float).ravel() for seed, row in rows.items()},
            )
    return found


def _differences(column: Column, numbers: Mapping[str, _Numbers]) -> list[Difference]:
    """Every pair of groups once; none in columns without direction or interval, none without two common seeds."""
    usable = [name for name, one in numbers.items() if all(len(r) > 1 for r in one.replicates.values())]
    found = []
    for i, first in enumerate(usable if column.direction != "none" else []):
        for second in usable[i + 1 :]:
            ours, theirs = numbers[first], numbers[second]
            seeds = tuple(sorted(set(ours.values) & set(theirs.values)))
            if len(seeds) < 2:
                continue
            gaps = tuple(ours.values[s] - theirs.values[s] for s in seeds)
            _require_pairs(ours, theirs, seeds, column)
            replicates = [ours.replicates[s] - theirs.replicates[s] for s in seeds]
            found.append(Difference(column.key, first, second, seeds, gaps, mean_over_seeds(gaps, replicates)))
    return found


def _require_pairs(ours: _Numbers, theirs: _Numbers, seeds: Sequence[int], column: Column) -> None:
    if len({len(one.replicates[s]) for one in (ours, theirs) for s in seeds}) > 1:
        raise SisError(
            f"bootstrap replicates of {column.metric} cannot be paired",
            fix="evaluate all runs again under the same protocol",
        )


def _standings(
    column: Column, numbers: Mapping[str, _Numbers], differences: Sequence[Difference], members: Mapping[str, list[Row]]
) -> dict[Hashable, Standing]:
    """Rank the groups of contestants in one column; stand-ins and columns without interval are not ranked."""
    sign = 1 if column.direction == "higher" else -1
    better: set[tuple[Hashable, Hashable]] = set()
    for one in differences:
        if one.column == column.key and one.estimate.beyond_chance:
            ahead = sign * one.estimate.value > 0
            better.add((one.first, one.second) if ahead else (one.second, one.first))
    values: dict[Hashable, float] = {
        name: float(np.mean(list(one.values.values())))
        for name, one in numbers.items()
        if members[name][0].role == "contestant" and all(len(r) > 1 for r in one.replicates.values())
    }
    if column.stand_in or column.direction == "none":
        return {}
    return placed(values, column.direction, lambda ours, theirs: (ours, theirs) in better)


def _group_row(
    name: str,
    title: str,
    columns: Sequence[Column],
    runs: Sequence[Row],
    numbers: Mapping[str, Mapping[str, _Numbers]],
    standings: Mapping[str, Mapping[Hashable, Standing]],
) -> Row:
    cells = []
    for index, column in enumerate(columns):
        standing = standings[column.key].get(name, UNRANKED)
        cells.append(_cell(numbers[column.key].get(name), [run.cells[index] for run in runs], standing))
    return replace(runs[0], run_id=name, run=name, title=title, seed=None, cells=tuple(cells))


def _cell(numbers: _Numbers | None, cells: Sequence[Cell], standing: Standing) -> Cell:
    if numbers is None:
        return Cell(note=next((cell.note for cell in cells if cell.value is None and cell.note), "not every seed"))
    values = list(numbers.values.values())
    mean = mean_over_seeds(values, list(numbers.replicates.values()))
    papers = tuple(replace(p, difference=mean.value - p.value) for p in cells[0].published)
    notes = {cell.note for cell in cells}
    note = notes.pop() if len(notes) == 1 else ""
    return Cell(mean.value, mean.low, mean.high, note, standing, papers, tuple(values))


def _rounded(column: Column, numbers: Mapping[str, _Numbers], differences: Sequence[Difference]) -> Column:
    """The column with the decimals that the intervals of its means, or those of its differences, justify."""
    means = [mean_over_seeds([*one.values.values()], [*one.replicates.values()]) for one in numbers.values()]
    gaps = [one.estimate for one in differences if one.column == column.key]
    digits = [min(column.digits, 1)]
    for some in (means, gaps):
        rows = [(one.value, one.low, one.high) for one in some]
        digits += [decimal_places(pd.DataFrame(rows, columns=["value", "low", "high"]))] if rows else []
    return replace(column, digits=max(digits))


def _titles(scores: pd.DataFrame, members: Mapping[str, list[Row]]) -> dict[str, str]:
    """A group is called as its runs are, where they agree and no other group is; else by its name."""
    by_run = {str(run): str(title) for run, title in zip(scores["run_id"], scores["title"], strict=True)}
    common = {name: {by_run[row.run_id] for row in runs} for name, runs in members.items()}
    titles = {name: found.pop() if len(found) == 1 else name for name, found in common.items()}
    shown = list(titles.values())
    return {name: title if shown.count(title) == 1 else f"{title} ({name})" for name, title in titles.items()}


def _in_rows(differences: Sequence[Difference], place: Mapping[str, int]) -> tuple[Difference, ...]:
    """By row of the table, each with the group that stands higher first."""
    turned = [d if place[d.first] < place[d.second] else d.turned() for d in differences]
    return tuple(sorted(turned, key=lambda d: (place[d.first], place[d.second])))
