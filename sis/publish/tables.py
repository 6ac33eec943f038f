# SPDX-License-Identifier: Apache-2.0
"""Comparison tables: runs in rows, metrics or classes in columns, controls in a block of their own."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import pandas as pd

from sis.errors import SisError, first_of
from sis.publish.columns import Column, class_column, decimal_places, metric_column, metric_order
from sis.publish.ranking import UNRANKED, Standing, rank_scores, require_one

PER_CLASS = "iou"

#: Columns that a table of published numbers has to have; a column `run` says beside which run alone a number stands.
PUBLISHED_COLUMNS = ("paper", "table", "dataset", "method", "variant", "metric", "value", "direction", "note")

#: The papers' numbers by (run or "", method, metric).
Papers = dict[tuple[str, str, str], list[dict]]


@dataclass(frozen=True)
class PublishedValue:
    """A number from a paper, shown beside ours and never ranked; `difference` is ours minus theirs."""

    paper: str
    table: str
    variant: str
    value: float
    difference: float | None
    note: str

    @property
    def source(self) -> str:
        """Where the number stands: paper, table and variant."""
        return ", ".join(part for part in (self.paper, self.table, self.variant) if part)


@dataclass(frozen=True)
class Cell:
    """One score: value with its 95 % interval, what it earned, and what papers print in its place."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    standing: Standing = UNRANKED
    published: tuple[PublishedValue, ...] = ()
    #: Of a mean over training seeds: the value of each seed, in their order.
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One run, or a group of runs that differ in their training seed (`seed` is None), with a cell for each column."""

    run_id: str
    run: str
    method: str
    title: str
    kind: str
    role: str
    seed: int | None
    n_images: int
    n_maps: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Runs of one dataset under one protocol; contestants by rank of the first ranked column, then controls.

    A protocol defines each metric by a protocol id; every column holds numbers of one id only. `legend` explains
    brackets and marks where they are not the usual ones.
    """

    caption: str
    dataset: str
    protocol: str
    columns: tuple[Column, ...]
    contestants: tuple[Row, ...]
    controls: tuple[Row, ...]
    legend: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        """Contestants, then controls."""
        return self.contestants + self.controls

    def published_in(self, column: int) -> bool:
        """Say whether papers print anything for this column."""
        return any(row.cells[column].published for row in self.rows)

    def leading_column(self) -> int | None:
        """Index of the first column in which somebody is ranked."""
        for index in range(len(self.columns)):
            if any(row.cells[index].standing.rank is not None for row in self.contestants):
                return index
        return None


def comparison_table(scores: pd.DataFrame, published: pd.DataFrame | None = None) -> Table:
    """Compare runs over all overall metrics of one dataset and protocol.

    `scores` has the columns of the scores schema; `published` those of config/published/ (optional), and may have a
    column `run`: such a number stands beside that run, others beside every run of their method.
    A metric whose rows carry several protocol ids (speed on several devices) gets a column for each id that has
    values. Raises SisError when datasets or protocols are mixed, a run has two values in one column, or columns
    are missing.
    """
    overall = scores.loc[scores["class_name"] == ""]
    dataset, _ = require_one(overall, ["dataset", "protocol"], "table")
    columns: list[Column] = []
    keys: dict[tuple[str, str], str] = {}
    for metric in sorted({str(m) for m in overall["metric"]}, key=metric_order):
        rows = overall.loc[overall["metric"] == metric]
        ids = sorted({str(i) for i in rows["protocol_id"]})
        valued = [i for i in ids if rows.loc[rows["protocol_id"] == i, "value"].notna().any()] or ids[:1]
        made = [metric_column(rows.loc[rows["protocol_id"] == i], shared=len(valued) > 1) for i in valued]
        # A null has no protocol to protect: its reason is shown in the first column of its metric.
        keys |= {(metric, i): made[0].key for i in ids} | {(metric, c.protocol_id): c.key for c in made}
        columns += made
    pairs = zip(overall["metric"], overall["protocol_id"], strict=True)
    keyed = overall.assign(column=[keys[str(metric), str(i)] for metric, i in pairs])
    return _table(f"{dataset}: all metrics", keyed, columns, _published_index(published, dataset))


def class_tables(scores: pd.DataFrame) -> list[Table]:
    """Compare runs over the IoU of every class: one table for each protocol id of the IoU, none without IoU."""
    every = scores.loc[(scores["metric"] == PER_CLASS) & (scores["class_name"] != "")]
    tables = []
    for protocol_id, rows in every.groupby("protocol_id", sort=True):
        dataset, _ = require_one(rows, ["dataset", "protocol"], "table")
        digits = decimal_places(rows)
        # Classes keep the order of the score files, which is the order of the label table.
        names = list(dict.fromkeys(str(n) for n in rows["class_name"]))
        columns = [class_column(name, rows.loc[rows["class_name"] == name], digits) for name in names]
        suffix = f" @{str(protocol_id)[:6]}" if every["protocol_id"].nunique() > 1 else ""
        keyed = rows.assign(column=rows["class_name"])
        tables.append(_table(f"{dataset}: IoU by class{suffix}", keyed, columns, {}))
    return tables


def _table(caption: str, scores: pd.DataFrame, columns: list[Column], papers: Papers) -> Table:
    ranks = rank_scores(scores)
    earned = {i: Standing(_whole(r), m) for i, r, m in zip(ranks.index, ranks["rank"], ranks["mark"], strict=True)}
    runs = [_row(group, columns, earned, papers) for _, group in scores.groupby("run_id", sort=True)]
    runs = _distinct_titles(runs)
    table = Table(
        caption=caption,
        dataset=str(scores["dataset"].iloc[0]),
        protocol=str(scores["protocol"].iloc[0]),
        columns=tuple(columns),
        contestants=tuple(row for row in runs if row.role == "contestant"),
        controls=tuple(row for row in runs if row.role != "contestant"),
    )
    return in_order(table)


def in_order(table: Table) -> Table:
    """The table with its rows by rank and value in the first ranked column, else by title."""
    leading = table.leading_column()

    def ordered(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(sorted(rows, key=lambda row: _place(row, leading, table.columns)))

    return replace(table, contestants=ordered(table.contestants), controls=ordered(table.controls))


def _place(row: Row, leading: int | None, columns: tuple[Column, ...]) -> tuple[float, float, str, str]:
    if leading is None:
        return (0, 0, row.title, row.run_id)
    cell, sign = row.cells[leading], -1 if columns[leading].direction == "higher" else 1
    rank = math.inf if cell.standing.rank is None else cell.standing.rank
    value = math.inf if cell.value is None else sign * cell.value
    return (rank, value, row.title, row.run_id)


def _row(
    group: pd.DataFrame,
    columns: list[Column],
    earned: dict[Hashable, Standing],
    papers: Papers,
) -> Row:
    first = group.iloc[0]
    cells = {str(name): _cell(rows, earned, papers) for name, rows in group.groupby("column")}
    return Row(
        run_id=str(first["run_id"]),
        run=str(first["run"]),
        method=str(first["method"]),
        title=str(first["title"]),
        kind=str(first["kind"]),
        role=str(first["role"]),
        seed=_count(first["seed"]),
        n_images=_count(group["n_images"].max()),
        n_maps=_count(group["n_maps"].max()),
        cells=tuple(cells.get(column.key, Cell(note="not evaluated")) for column in columns),
    )


def _cell(rows: pd.DataFrame, earned: dict[Hashable, Standing], papers: Papers) -> Cell:
    row, index = rows.iloc[0], rows.index[0]
    value = _finite(row["value"])
    # A stand-in's number is another metric: its name carries the stand-in, so it never meets a published number.
    entries = [] if row["stand_in"] else _entries(row, papers)
    return Cell(
        value=value,
        low=_finite(row["low"]),
        high=_finite(row["high"]),
        note=str(row["note"] or ""),
        standing=earned[index],
        published=tuple(
            PublishedValue(
                paper=_text(e["paper"]),
                table=_text(e["table"]),
                variant=_text(e["variant"]),
                value=float(e["value"]),
                difference=None if value is None else value - float(e["value"]),
                note=_text(e["note"]),
            )
            for e in entries
        ),
    )


def _entries(row: pd.Series, papers: Papers) -> list[dict]:
    """What papers print in this place: for the run alone, and for every run of its method."""
    keys = dict.fromkeys((_key(run), _key(row["method"]), _key(row["metric"])) for run in ("", row["run"]))
    entries = [entry for key in keys for entry in papers.get(key, [])]
    for entry in entries:
        if entry["direction"] != row["direction"]:
            raise SisError(
                f"{row['metric']}: {row['direction']} is better, {entry['direction']} in {entry['paper']}",
                where=f"config/published, {entry['table']}",
                fix="two different metrics share a name: see `published_metrics:` of the experiment",
            )
    return entries


def _published_index(published: pd.DataFrame | None, dataset: str) -> Papers:
    """Group the papers' numbers for `dataset` by (run, method, metric), compared without regard to case."""
    if published is None:
        return {}
    missing = [c for c in PUBLISHED_COLUMNS if c not in published.columns]
    if missing:
        raise SisError(
            f"published numbers lack columns: {first_of(missing)}",
            where="config/published",
            fix="columns are " + ", ".join(PUBLISHED_COLUMNS),
        )
    index: Papers = {}
    ordered = published.astype(dict.fromkeys(("paper", "table", "variant"), str))
    for entry in ordered.sort_values(["paper", "table", "variant"], kind="stable").to_dict("records"):
        if _key(entry["dataset"]) == _key(dataset) and _finite(entry["value"]) is not None:
            key = (_key(_text(entry.get("run"))), _key(entry["method"]), _key(entry["metric"]))
            index.setdefault(key, []).append(entry)
    return index


def _distinct_titles(rows: list[Row]) -> list[Row]:
    """Tell equal titles apart by training seed, and by run id where that is not enough."""
    for suffix in (lambda r: f"seed {r.seed}", lambda r: r.run_id):
        titles = [r.title for r in rows]
        rows = [
            Row(**{**r.__dict__, "title": f"{r.title} ({suffix(r)})"}) if titles.count(r.title) > 1 else r for r in rows
        ]
    return rows


def _key(value: object) -> str:
    return str(value).strip().casefold()


def _text(value: object) -> str:
    """Read a cell of a published table, where an empty cell arrives as None or NaN."""
    return "" if value is None or str(value) in ("nan", "None", "<NA>") else str(value)


def _count(value: object) -> int:
    return int(str(value))


def _finite(value: object) -> float | None:
    number = math.nan if value is None else float(str(value))
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    return None if value is pd.NA or value is None else int(str(value))
