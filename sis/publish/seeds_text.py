# SPDX-License-Identifier: Apache-2.0
"""Means over training seeds and their differences as text; equal tables give equal bytes."""

from __future__ import annotations

import csv
import io

from sis.publish.columns import Column, format_signed
from sis.publish.seeds import Difference, OverSeeds
from sis.publish.table_text import escape_markdown

_MEANS_HEAD = (
    *("dataset", "protocol", "group", "title", "role", "seeds"),
    *("column", "metric", "protocol_id", "unit", "direction", "stand_in"),
    *("mean", "low", "high", "values", "rank", "mark", "paper_value", "paper", "note"),
)
_DIFFERENCES_HEAD = (
    *("dataset", "protocol", "first", "second", "seeds"),
    *("column", "metric", "protocol_id", "unit", "direction", "stand_in"),
    *("difference", "low", "high", "gaps", "wins", "beyond_chance"),
)

DIFFERENCES_LEGEND = (
    "First minus second, seed by seed and label map by label map. Brackets: 95 % interval over training seeds and "
    "label maps; bold: it excludes 0. Then: in how many of the seeds the first is better by value alone. Not corrected "
    "for the number of comparisons."
)


def means_to_csv(over: OverSeeds) -> str:
    """Render one line a row and column with full precision (empty = null); `values` are those of `seeds`."""
    out, table = io.StringIO(), over.table
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_MEANS_HEAD)
    for row in table.rows:
        seeds = over.seeds.get(row.run, ())
        for column, cell in zip(table.columns, row.cells, strict=True):
            numbers = ["" if n is None else repr(n) for n in (cell.value, cell.low, cell.high)]
            rank = "" if cell.standing.rank is None else cell.standing.rank
            papers = ["; ".join(repr(p.value) for p in cell.published), "; ".join(p.source for p in cell.published)]
            facts = [table.dataset, table.protocol, row.run, row.title, row.role, _listed(seeds)]
            values = _listed([repr(v) for v in cell.seeds])
            writer.writerow([*facts, *_column(column), *numbers, values, rank, cell.standing.mark, *papers, cell.note])
    return out.getvalue()


def differences_to_csv(over: OverSeeds) -> str:
    """Render one line a difference with full precision (empty = null); `gaps` are those of `seeds`."""
    out, table = io.StringIO(), over.table
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_DIFFERENCES_HEAD)
    columns = {column.key: column for column in table.columns}
    for one in over.differences:
        column, mean = columns[one.column], one.estimate
        numbers = ["" if n is None else repr(n) for n in (mean.value, mean.low, mean.high)]
        gaps, wins = _listed([repr(gap) for gap in one.gaps]), one.wins(column.direction)
        verdict = "yes" if mean.beyond_chance else "no"
        facts = [table.dataset, table.protocol, one.first, one.second, _listed(one.seeds)]
        writer.writerow([*facts, *_column(column), *numbers, gaps, wins, verdict])
    return out.getvalue()


def differences_to_markdown(over: OverSeeds) -> str:
    """Render one row a pair of groups, one column a metric."""
    table = over.table
    titles = {row.run: row.title for row in table.rows}
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for one in over.differences:
        pairs.setdefault((one.first, one.second), {})[one.column] = one
    head = ["First", "Second", *(escape_markdown(column.title) for column in over.compared)]
    lines = [
        f"**{escape_markdown(table.caption)}: differences** (protocol {escape_markdown(table.protocol)})",
        "",
        _pipes(head),
        _pipes(["---", "---", *["---:"] * len(over.compared)]),
    ]
    for (first, second), found in pairs.items():
        cells = [_difference(found.get(column.key), column) for column in over.compared]
        lines.append(_pipes([escape_markdown(titles[first]), escape_markdown(titles[second]), *cells]))
    return "\n".join([*lines, "", DIFFERENCES_LEGEND, ""])


def _difference(one: Difference | None, column: Column) -> str:
    if one is None:
        return "–"
    mean, digits = one.estimate, column.digits
    text = format_signed(mean.value, digits)
    if mean.low is not None and mean.high is not None:
        text = f"**{text}**" if mean.beyond_chance else text
        text += rf" \[{format_signed(mean.low, digits)}, {format_signed(mean.high, digits)}\]"
    return f"{text} {one.wins(column.direction)}/{len(one.seeds)}"


def _column(column: Column) -> list[str]:
    return [column.key, column.metric, column.protocol_id, column.unit, column.direction, column.stand_in]


def _listed(items: object) -> str:
    return " ".join(str(item) for item in items) if isinstance(items, list | tuple) else ""


def _pipes(fields: list[str]) -> str:
    return "| " + " | ".join(fields) + " |"
