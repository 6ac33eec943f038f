# SPDX-License-Identifier: Apache-2.0
"""Comparison tables: marks, stand-ins, nulls, papers' numbers, and free text made inert."""

from __future__ import annotations

import csv
import io

import pandas as pd
import publish_example as example  # pyright: ignore[reportMissingImports]
import pytest

from sis.errors import SisError
from sis.publish.columns import decimal_places, format_number, metric_column
from sis.publish.table_text import escape_latex, escape_markdown, to_csv, to_latex, to_markdown
from sis.publish.tables import Table, class_tables, comparison_table


def _table(rows: list[dict] | None = None, published: pd.DataFrame | None = None) -> Table:
    return comparison_table(example.frame(rows or example.score_rows()), published)


def _line(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if title in line)


def test_hostile_titles_are_inert_in_markdown_and_latex() -> None:
    assert (
        escape_markdown(example.HOSTILE) == r"&lt;script&gt;window.hacked = true; alert(1)&lt;/script&gt; &amp; 50%\_x"
    )
    escaped = escape_latex(example.HOSTILE)
    assert r"\textless{}script\textgreater{}" in escaped
    assert escaped.endswith(r"\& 50\%\_x")
    assert escape_markdown("a | b\n`c`") == r"a \| b \`c\`"
    table = _table(example.score_rows(hostile=True))
    assert "<script" not in to_markdown(table)
    assert "<script" not in to_latex(table)


def test_all_that_are_not_significantly_worse_than_the_best_are_bold() -> None:
    text = to_markdown(_table())
    assert "**62.3**" in _line(text, "SDM + categorical prior")
    assert "**61.8**" in _line(text, "| SDM |")
    assert "<ins>57.4</ins>" in _line(text, "IIDM")
    assert r"\textbf{62.3}" in to_latex(_table())
    assert r"\underline{57.4}" in to_latex(_table())


def test_controls_come_last_and_carry_neither_rank_nor_mark() -> None:
    table = _table()
    assert [row.role for row in table.rows] == ["contestant"] * 8 + ["control"] * 5
    assert all(cell.standing.rank is None and not cell.standing.mark for row in table.controls for cell in row.cells)
    assert r"\midrule" in to_latex(table).split("pix2pixHD")[1]


def test_a_stand_in_is_named_in_the_heading_and_never_ranked() -> None:
    table = _table()
    index = next(i for i, c in enumerate(table.columns) if c.stand_in)
    assert table.columns[index].title == "LPIPS alex [stand-in: seeded-random-backbone] ↑"
    assert all(row.cells[index].standing.rank is None for row in table.rows)
    assert r"{[}stand-in: seeded-random-backbone{]}" in to_latex(table)


def test_null_values_print_as_a_dash_with_their_reason() -> None:
    text = to_markdown(_table())
    assert "MS-SSIM ↓: one image a map: no pairs (Real images, Blurred real" in text
    assert _line(text, "| Palette").rstrip().endswith("| – | – |")
    lines = list(csv.DictReader(io.StringIO(to_csv(_table()))))
    null = next(line for line in lines if line["run"] == "real" and line["metric"] == "ms-ssim")
    assert (null["value"], null["rank"], null["note"]) == ("", "", "one image a map: no pairs")


def test_csv_keeps_every_digit() -> None:
    rows = [example.score(value=1 / 3, low=0.1 + 0.2, high=2 / 3)]
    line = next(csv.DictReader(io.StringIO(to_csv(_table(rows)))))
    assert (float(line["value"]), float(line["low"])) == (1 / 3, 0.1 + 0.2)


def test_papers_numbers_get_their_own_columns_and_never_meet_a_stand_in() -> None:
    text = to_markdown(_table(published=example.published()))
    assert "| 63.1 (SDM, Table I) | -1.3 |" in _line(text, "| SDM |")
    assert text.count("paper") == 1
    assert "paper" not in to_markdown(_table())
    assert r"\textcolor{gray}{48.2 (+1.4)}" in to_latex(_table(published=example.published()))
    with pytest.raises(SisError, match="lack columns"):
        _table(published=pd.DataFrame({"paper": ["x"]}))


def test_mixing_protocols_or_datasets_is_refused() -> None:
    for field in ("protocol", "dataset"):
        rows = [example.score(), example.score(run_id="b", **{field: "other"})]
        with pytest.raises(SisError, match="cannot share a table"):
            _table(rows)
    with pytest.raises(SisError, match="protocol_id"):
        metric_column(example.frame([example.score(), example.score(run_id="b", protocol_id="f" * 16)]))


def test_one_metric_under_two_protocol_ids_gets_two_columns() -> None:
    rows = [example.score(title="A"), example.score(title="B", run_id="b", protocol_id="f" * 16, value=99.0)]
    table = _table(rows)
    assert [c.title for c in table.columns] == ["mIoU @524b33 (%) ↑", "mIoU @ffffff (%) ↑"]
    values = {row.title: [cell.value for cell in row.cells] for row in table.rows}
    assert values == {"A": [50.0, None], "B": [None, 99.0]}


def test_equal_titles_are_told_apart_by_seed() -> None:
    rows = [example.score(seed=1), example.score(seed=2, run_id="b")]
    assert [row.title for row in _table(rows).rows] == ["Title (seed 1)", "Title (seed 2)"]


def test_class_table_keeps_the_order_of_the_label_table() -> None:
    (table,) = class_tables(example.frame(example.score_rows()))
    assert [c.name for c in table.columns] == [name for name, _ in example.CLASSES]
    assert class_tables(example.frame([example.score()])) == []


def test_decimals_follow_the_interval() -> None:
    def places(half_width: float) -> int:
        return decimal_places(example.frame([example.score(value=50.0, low=50 - half_width, high=50 + half_width)]))

    assert [places(h) for h in (12.0, 1.2, 0.12, 0.012, 1e-9)] == [0, 1, 2, 3, 4]
    assert decimal_places(example.frame([example.score(value=118.0, low=None, high=None)])) == 0
    assert format_number(-0.0001, 2) == "0.00"


def test_text_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = example.score_rows()
    overall = [r for r in rows if not r["class_name"]]
    for write in (to_markdown, to_latex, to_csv):
        assert write(_table(overall)) == write(_table(overall[::-1]))


def test_a_number_for_one_run_stands_beside_that_run_alone() -> None:
    rows = [example.score(run=run, run_id=run, method="sdm", title=run) for run in ("full", "concat")]
    papers = example.published().iloc[:1].assign(run="concat")
    shown = {row.run: [p.value for p in row.cells[0].published] for row in _table(rows, papers).rows}
    assert shown == {"full": [], "concat": [63.1]}
    everywhere = {row.run: len(row.cells[0].published) for row in _table(rows, papers.drop(columns="run")).rows}
    assert everywhere == {"full": 1, "concat": 1}


def test_a_paper_that_counts_the_other_way_round_is_refused() -> None:
    papers = example.published().assign(direction="lower")
    with pytest.raises(SisError, match=r"miou: higher is better, lower in SDM \[config/published, Table I\]"):
        _table(published=papers)
