# SPDX-License-Identifier: Apache-2.0
"""Tables as text: Markdown, LaTeX (booktabs) and CSV; equal tables give equal bytes."""

from __future__ import annotations

import csv
import io
import re

from sis.publish.columns import Column, format_number, format_signed
from sis.publish.tables import Cell, Row, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row, a bare bracket would be read as an optional argument
    "]": "{]}",
    '"': r"\textquotedbl{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
}

_CSV_HEAD = (
    *("dataset", "protocol"),
    *("run", "run_id", "title", "kind", "role", "seed"),
    *("column", "metric", "protocol_id", "unit", "direction", "stand_in"),
    *("value", "low", "high"),
    *("rank", "mark", "paper_value", "paper", "note"),
)

LEGEND = (
    "Brackets: 95 % bootstrap interval over label maps. "
    "Bold: the best contestant and all it does not beat significantly (paired bootstrap). "
    "Underlined: the same among the rest. Controls and stand-in columns are never ranked."
)


def escape_markdown(text: str) -> str:
    """Make free text inert in a Markdown table cell, HTML included."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", text)


def escape_latex(text: str) -> str:
    """Make free text inert in LaTeX."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_markdown(table: Table) -> str:
    """Render as a GitHub-flavoured Markdown table; papers' numbers get columns "paper" and "difference"."""
    head = ["Run"]
    for index, column in enumerate(table.columns):
        head.append(escape_markdown(column.title))
        head += ["paper", "difference"] if table.published_in(index) else []
    lines = [
        f"**{escape_markdown(table.caption)}** (protocol {escape_markdown(table.protocol)})",
        "",
        _pipes(head),
        _pipes(["---"] + ["---:"] * (len(head) - 1)),
    ]
    lines += [_pipes(_markdown_row(table, row)) for row in table.contestants]
    if table.controls:
        lines.append(_pipes(["**Controls**"] + [""] * (len(head) - 1)))
        lines += [_pipes(_markdown_row(table, row)) for row in table.controls]
    return "\n".join([*lines, "", table.legend or LEGEND, *_notes(table), ""])


def to_latex(table: Table) -> str:
    """Render as a LaTeX table (packages booktabs and xcolor); best bold, second underlined, papers grey."""
    columns = "l" + "".join("rr" if table.published_in(i) else "r" for i in range(len(table.columns)))
    head = [""]
    for index, column in enumerate(table.columns):
        head.append(escape_latex(column.title))
        head += [r"\textcolor{gray}{paper ($\Delta$)}"] if table.published_in(index) else []
    legend = table.legend or LEGEND
    lines = [
        r"% \usepackage{booktabs,xcolor}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}. Protocol {escape_latex(table.protocol)}. {escape_latex(legend)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _ampersands(head),
        r"\midrule",
    ]
    lines += [_ampersands(_latex_row(table, row)) for row in table.contestants]
    if table.controls:
        lines.append(r"\midrule")
        lines += [_ampersands(_latex_row(table, row)) for row in table.controls]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def to_csv(table: Table) -> str:
    """Render one line a run and column with full precision (empty = null)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            writer.writerow(_csv_fields(table, row, column, cell))
    return out.getvalue()


def _csv_fields(table: Table, row: Row, column: Column, cell: Cell) -> list[object]:
    standing = cell.standing
    return [
        *(table.dataset, table.protocol),
        *(row.run, row.run_id, row.title, row.kind, row.role, row.seed),
        *(column.key, column.metric, column.protocol_id, column.unit, column.direction, column.stand_in),
        *("" if number is None else repr(number) for number in (cell.value, cell.low, cell.high)),
        "" if standing.rank is None else standing.rank,
        standing.mark,
        "; ".join(repr(p.value) for p in cell.published),
        "; ".join(p.source for p in cell.published),
        cell.note,
    ]


def _markdown_row(table: Table, row: Row) -> list[str]:
    fields = [escape_markdown(row.title)]
    for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
        text = format_number(cell.value, column.digits)
        marked = {"best": f"**{text}**", "second": f"<ins>{text}</ins>", "": text}[cell.standing.mark]
        fields.append(marked + _interval(cell, column, r" \[{}, {}\]"))
        if table.published_in(index):
            papers = [f"{p.value:g} ({escape_markdown(p.source)})" for p in cell.published]
            differences = [format_signed(p.difference, column.digits) for p in cell.published]
            fields += ["; ".join(papers), "; ".join(differences)]
    return fields


def _latex_row(table: Table, row: Row) -> list[str]:
    fields = [escape_latex(row.title)]
    for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True)):
        text = escape_latex(format_number(cell.value, column.digits))
        marked = {"best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}", "": text}
        fields.append(marked[cell.standing.mark] + _interval(cell, column, r" {{\scriptsize [{}, {}]}}"))
        if table.published_in(index):
            papers = [f"{p.value:g} ({format_signed(p.difference, column.digits)})" for p in cell.published]
            fields.append(rf"\textcolor{{gray}}{{{escape_latex('; '.join(papers))}}}" if papers else "")
    return fields


def _interval(cell: Cell, column: Column, form: str) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return form.format(format_number(cell.low, column.digits), format_number(cell.high, column.digits))


def _notes(table: Table) -> list[str]:
    """Name the protocol id of every column, what its values share, and why single values are missing or doubtful."""
    by_id: dict[str, list[str]] = {}
    for column in table.columns:
        by_id.setdefault(column.protocol_id, []).append(escape_markdown(column.title))
    notes = [f"- protocol id `{protocol_id}`: {', '.join(titles)}" for protocol_id, titles in by_id.items()]
    notes += [
        f"- {escape_markdown(column.title)}: {escape_markdown(column.remark)}"
        for column in table.columns
        if column.remark
    ]
    papers = {
        (paper.source, paper.note): column.title
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        for paper in cell.published
        if paper.note
    }
    notes += [
        f"- {escape_markdown(source)}, {escape_markdown(title)}: {escape_markdown(note)}"
        for (source, note), title in papers.items()
    ]
    runs_by_note: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.note and (cell.value is None or cell.note != column.remark):
                runs_by_note.setdefault((column.title, cell.note), []).append(row.title)
    notes += [
        f"- {escape_markdown(title)}: {escape_markdown(note)} ({escape_markdown(', '.join(runs))})"
        for (title, note), runs in runs_by_note.items()
    ]
    return ["", *notes]


def _pipes(fields: list[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def _ampersands(fields: list[str]) -> str:
    return " & ".join(fields) + r" \\"
