# SPDX-License-Identifier: Apache-2.0
"""Plots of a number against a parameter, a line for each value of another: SCP-Diff's Figs. 3 and 8 and their like."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sis.config.experiment import FigureCard
from sis.errors import SisError, did_you_mean
from sis.publish.columns import Column
from sis.publish.tables import Cell, Row, Table
from sis.run_spec import RunSpec

_INCHES, _DOTS = (5.2, 3.8), 150
#: Colours that colour-blind readers tell apart (Okabe & Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Place:
    """Where a run stands in a figure: its value on the x axis, None for a dashed line all across, and its line."""

    x: float | None
    line: str


@dataclass(frozen=True)
class Sweep:
    """A figure of one dataset. places: by run id, and by name of a group of training seeds."""

    name: str
    card: FigureCard
    dataset: str
    places: Mapping[str, Place]


def planned(name: str, card: FigureCard, dataset: str, runs: Sequence[tuple[RunSpec, str]]) -> Sweep:
    """Place the runs of a dataset, each given with its group's name ("" for none), in a figure."""
    places: dict[str, Place] = {}
    for spec, group in runs:
        given = {**spec.fit, **spec.prior, **spec.sample}
        names = {spec.name, group} - {""}
        place = None
        if names & set(card.dashed):
            place = Place(None, spec.title)
        elif isinstance(given.get(card.x), int | float) and (not card.lines or card.lines in given):
            place = Place(float(given[card.x]), str(given[card.lines]) if card.lines else "")
        if place is not None:
            places |= {spec.run_id: place} | ({group: place} if group else {})
    return Sweep(name, card, dataset, places)


def draw_sweep(sweep: Sweep, table: Table) -> dict[str, bytes]:
    """The figure as PNG and its points as CSV, by file name; nothing where no run of the table stands in it.

    Equal tables give equal bytes. The bars are 95 % intervals; of means over training seeds where the table is one.
    Raises SisError for a metric that the table has not.
    """
    rows = [row for row in table.rows if row.run_id in sweep.places]
    if not rows:
        return {}
    known = {column.metric.partition("[")[0]: column for column in table.columns}
    for metric in sweep.card.metrics:
        if metric not in known:
            what = f"figure {sweep.name}: no metric {metric!r} under protocol {table.protocol}"
            raise SisError(what, fix=did_you_mean(metric, known))
    columns = [known[metric] for metric in sweep.card.metrics]
    stem = f"{sweep.dataset}-{sweep.name}"
    return {
        f"gallery/{stem}.png": _drawn(sweep, table, columns, rows),
        f"tables/{stem}.csv": _points(sweep, table, columns, rows).encode(),
    }


def _drawn(sweep: Sweep, table: Table, columns: Sequence[Column], rows: Sequence[Row]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES[0] * len(columns), _INCHES[1]), dpi=_DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    lines = list(dict.fromkeys(sweep.places[row.run_id].line for row in rows))
    for number, column in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), number + 1)
        index = table.columns.index(column)
        for line, colour in zip(lines, _COLOURS * (1 + len(lines) // len(_COLOURS)), strict=False):
            _draw_line(axes, sweep, [(sweep.places[r.run_id], r.cells[index]) for r in rows], line, colour)
        axes.set_xlabel(sweep.card.x_label or sweep.card.x)
        axes.set_ylabel(column.title)
        axes.grid(True, alpha=0.3)
    figure.axes[0].legend(title=sweep.card.lines or None, fontsize="small")
    figure.suptitle(f"{sweep.card.title} ({sweep.dataset})", fontsize="medium")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_line(axes, sweep: Sweep, cells: Sequence[tuple[Place, Cell]], line: str, colour: str) -> None:
    points = sorted((p.x, c.value, c.low, c.high) for p, c in cells if p.line == line and p.x is not None and c.value)
    if points:
        below = [0.0 if low is None else max(value - low, 0.0) for _, value, low, _ in points]
        above = [0.0 if high is None else max(high - value, 0.0) for _, value, _, high in points]
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        axes.errorbar(xs, ys, yerr=(below, above), marker="o", capsize=3, color=colour, label=line or None)
    for place, cell in cells:
        if place.line == line and place.x is None and cell.value is not None:
            axes.axhline(cell.value, linestyle="--", color=colour, label=line)


def _points(sweep: Sweep, table: Table, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    file = csv.writer(text, lineterminator="\n")
    file.writerow([sweep.card.lines or "line", sweep.card.x, "run", "metric", "protocol_id", "value", "low", "high"])
    for row in rows:
        place = sweep.places[row.run_id]
        for column in columns:
            cell = row.cells[table.columns.index(column)]
            numbers = [cell.value, cell.low, cell.high]
            file.writerow([place.line, place.x, row.run, column.metric, column.protocol_id, *numbers])
    return text.getvalue()
