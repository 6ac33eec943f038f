# SPDX-License-Identifier: Apache-2.0
"""The scores of one image set with those of its controls beside them: as lines, as plain data, as one Parquet table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sis.publish.columns import Column, format_number, metric_column, metric_order

#: Below so many images a Fréchet distance is biased upwards enough to change an order.
FEW_IMAGES = 2048
_FRECHET = ("fid", "fd")


@dataclass(frozen=True)
class Line:
    """One metric: our row of the score table, the rows of the controls, what a reader must know."""

    row: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    unverified: list[str]
    caveats: list[str] = field(default_factory=list)

    @property
    def column(self) -> Column:
        """How the metric is named and rounded."""
        return metric_column(pd.DataFrame([self.row]))

    def control(self, name: str) -> dict[str, Any] | None:
        """A control's row, if it was judged by the same protocol id."""
        row = self.controls.get(name)
        return row if row is not None and row["protocol_id"] == self.row["protocol_id"] else None


def score_lines(
    ours: Sequence[dict], controls: Mapping[str, Sequence[dict]], records: Mapping[str, Mapping[str, Any]]
) -> list[Line]:
    """One line a metric, in the order of the project's tables.

    Args:
        ours: rows of the score schema; controls: the same by the control's name.
        records: protocol records by protocol id.
    """
    lines = []
    for row in sorted((r for r in ours if r["class_name"] == ""), key=lambda r: metric_order(r["metric"])):
        networks = records.get(row["protocol_id"], {}).get("networks", [])
        unverified = sorted({n["name"] for n in networks if n and not n.get("verified", True)})
        beside = {
            name: match
            for name, rows in controls.items()
            for match in [r for r in rows if (r["metric"], r["class_name"]) == (row["metric"], "")][:1]
        }
        lines.append(Line(row, beside, unverified, _caveats(row, unverified)))
    return lines


def _caveats(row: dict, unverified: list[str]) -> list[str]:
    found = []
    if row["stand_in"]:
        found.append(f"stand-in weights ({row['stand_in']}): not the real metric, comparable with nothing published")
    if unverified:
        found.append(f"unverified weights ({', '.join(unverified)}): their publisher states no hash")
    few = row["metric"].startswith(_FRECHET) and row["n_images"] < FEW_IMAGES
    if row["value"] is not None and few and "biased" not in row["note"]:
        found.append(f"{row['n_images']:,} images: below {FEW_IMAGES:,} it is biased upwards; compare at equal n alone")
    if row["value"] is not None:
        # That weights are unverified has been said, with their names.
        found += [
            note for note in row["note"].split("; ") if note and not (unverified and note == "unverified weights")
        ]
    return found


def spelled(lines: Sequence[Line], controls: Sequence[str]) -> list[str]:
    """The lines as an aligned table, with caveats numbered below it."""
    caveats: list[str] = []
    table = [["metric", "value", "95 % interval", *controls, "n", "protocol id", ""]]
    for line in lines:
        column, row = line.column, line.row
        marks = []
        for caveat in line.caveats:
            caveats += [] if caveat in caveats else [caveat]
            marks.append(f"[{caveats.index(caveat) + 1}]")
        value = "–" if row["value"] is None else format_number(row["value"], column.digits)
        interval = f"undefined: {row['note']}" if row["value"] is None else _interval(row, column.digits)
        beside = [_beside(line, name, column.digits) for name in controls]
        images = f"{row['n_images']:,}"
        table.append([column.title, value, interval, *beside, images, row["protocol_id"], " ".join(marks)])
    widths = [max(len(cells[i]) for cells in table) for i in range(len(table[0]))]
    right = {1, *range(3, 4 + len(controls))}
    text = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        for cells in table
    ]
    return [*(t.rstrip() for t in text), *(f"[{i}] {caveat}" for i, caveat in enumerate(caveats, 1))]


def _interval(row: dict, digits: int) -> str:
    if row["low"] is None or not math.isfinite(row["low"]):
        return "none"
    return f"[{format_number(row['low'], digits)}, {format_number(row['high'], digits)}]"


def _beside(line: Line, control: str, digits: int) -> str:
    row = line.control(control)
    return "–" if row is None or row["value"] is None else format_number(row["value"], digits)


def plain(lines: Sequence[Line], controls: Sequence[str]) -> list[dict[str, Any]]:
    """The lines as data for JSON: unrounded numbers, null where undefined."""
    names = ("metric", "value", "low", "high", "unit", "direction", "n_images", "n_maps", "protocol_id", "stand_in")
    return [
        {
            **{name: line.row[name] for name in names},
            "note": line.row["note"],
            "unverified": line.unverified,
            "caveats": line.caveats,
            "controls": {name: (line.control(name) or {}).get("value") for name in controls},
        }
        for line in lines
    ]
