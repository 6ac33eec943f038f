# SPDX-License-Identifier: Apache-2.0
"""Plots against a parameter: which run stands where, points as in the table, equal bytes, and refusals."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from sis.config.experiment import FigureCard
from sis.errors import SisError
from sis.plan import load_plan
from sis.publish.columns import Column
from sis.publish.sweeps import Place, Sweep, draw_sweep, planned
from sis.publish.tables import Cell, Row, Table

CARD = FigureCard(title="Levels", x="mu", lines="prior", metrics=["fid", "miou"], dashed=["normal"])


def column(metric: str) -> Column:
    return Column(f"{metric}:1", metric, "1", metric, "", "", "", "lower", "", "", 1)


def row(name: str, *values: float | None) -> Row:
    cells = tuple(Cell(v, None if v is None else v - 1, None if v is None else v + 2) for v in values)
    return Row(name, name, "scp_diff", name, "python", "contestant", None, 8, 8, cells)


def table(*rows: Row) -> Table:
    return Table("Caption", "scenes", "p", (column("fid[stand-in]"), column("miou")), rows, ())


PLACES = {"a": Place(0.5, "joint"), "b": Place(1.0, "joint"), "normal": Place(None, "Normal")}
SWEEP = Sweep("levels", CARD, "scenes", PLACES)


def test_points_are_those_of_the_table() -> None:
    files = draw_sweep(
        SWEEP, table(row("a", 30.0, 9.0), row("b", 20.0, None), row("normal", 25.0, 8.0), row("c", 1, 1))
    )
    assert sorted(files) == ["gallery/scenes-levels.png", "tables/scenes-levels.csv"]
    assert files["gallery/scenes-levels.png"].startswith(b"\x89PNG")
    read = list(csv.DictReader(io.StringIO(files["tables/scenes-levels.csv"].decode())))
    assert [(r["prior"], r["mu"], r["metric"], r["value"], r["low"], r["high"]) for r in read] == [
        ("joint", "0.5", "fid[stand-in]", "30.0", "29.0", "32.0"),
        ("joint", "0.5", "miou", "9.0", "8.0", "11.0"),
        ("joint", "1.0", "fid[stand-in]", "20.0", "19.0", "22.0"),
        ("joint", "1.0", "miou", "", "", ""),
        ("Normal", "", "fid[stand-in]", "25.0", "24.0", "27.0"),
        ("Normal", "", "miou", "8.0", "7.0", "10.0"),
    ]


def test_equal_tables_give_equal_bytes_and_other_numbers_other_pictures() -> None:
    first, again, other = (
        draw_sweep(SWEEP, table(row("a", value, 9.0), row("b", 20.0, 8.0))) for value in (30, 30, 31)
    )
    assert first == again
    assert first["gallery/scenes-levels.png"] != other["gallery/scenes-levels.png"]


def test_nothing_is_drawn_of_a_table_without_its_runs() -> None:
    assert draw_sweep(SWEEP, table(row("c", 1.0, 2.0))) == {}


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    wrong = replace(SWEEP, card=CARD.model_copy(update={"metrics": ["fids"]}))
    with pytest.raises(SisError, match=r"figure levels: no metric 'fids'.*did you mean 'fid'"):
        draw_sweep(wrong, table(row("a", 1.0, 2.0)))


def test_runs_stand_where_their_parameters_say() -> None:
    spec = load_plan(experiment="tiny").runs[0]

    def of(name: str, **sample: Any) -> tuple[Any, str]:
        return replace(spec, name=name, title=name.upper(), sample=sample), "group" if name == "seeded" else ""

    runs = [
        of("joint", mu=0.5, prior="joint"),
        of("seeded", mu=1, prior="x0"),
        of("normal"),
        of("other", prior="joint"),
    ]
    found = planned("levels", CARD, "scenes", runs)
    ids = [s.run_id for s, _ in runs]
    assert found.places == {
        ids[0]: Place(0.5, "joint"),
        ids[1]: Place(1.0, "x0"),
        "group": Place(1.0, "x0"),
        ids[2]: Place(None, "NORMAL"),
    }
