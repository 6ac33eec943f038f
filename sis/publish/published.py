# SPDX-License-Identifier: Apache-2.0
"""Numbers that papers print: the tables of config/published, and which number stands beside which of our runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from pyarrow import csv

from sis.config.experiment import Experiment, Run
from sis.config.files import project_root
from sis.errors import SisError, did_you_mean
from sis.publish.tables import PUBLISHED_COLUMNS

#: What tells two numbers apart.
KEY = ("paper", "table", "dataset", "method", "variant", "metric")
DIRECTIONS = ("higher", "lower", "none")

_SCHEMA = pa.schema([(column, pa.float64() if column == "value" else pa.string()) for column in PUBLISHED_COLUMNS])
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class PlannedRun(NamedTuple):
    """A run on one dataset, as far as papers are concerned."""

    dataset: str
    name: str
    method: str


def load_published(names: Sequence[str], folder: Path | None = None) -> pd.DataFrame:
    """Read tables of config/published (or of `folder`) by name, in that order.

    Columns as PUBLISHED_COLUMNS: `value` is float64, everything else text, an empty cell "". Raises SisError for an
    unknown table and, with file and line, for wrong columns, a cell that is no name, number or direction, a number
    that stands twice, and a metric with two directions.
    """
    folder = folder or project_root() / "config" / "published"
    numbers: list[dict[str, object]] = []
    places: dict[tuple[str, ...], str] = {}
    directions: dict[str, tuple[str, str]] = {}
    for name in names:
        for place, row in _rows(_file(folder, name)):
            _check(row, place)
            key = tuple(row[column] for column in KEY)
            if key in places:
                what = ", ".join(part for part in key if part)
                raise SisError(f"the number of {what} stands twice", where=place, fix=f"the other: {places[key]}")
            places[key] = place
            direction, first = directions.setdefault(row["metric"], (row["direction"], place))
            if direction != row["direction"]:
                raise SisError(
                    f"{row['metric']}: {row['direction']} is better here, {direction} elsewhere",
                    where=place,
                    fix=f"the other: {first}",
                )
            numbers.append({**row, "value": float(row["value"])})
    return pa.Table.from_pylist(numbers, schema=_SCHEMA).to_pandas()


def numbers_beside(published: pd.DataFrame, experiment: Experiment, runs: Iterable[PlannedRun]) -> pd.DataFrame:
    """Choose the numbers that stand beside each run, under our names of dataset and metric.

    A run meets the numbers of its method, on what its dataset is called in the papers (`datasets.*.published`), of the
    variant that it reproduces (`runs.*.published`); numbers of methods without a run are left out. Adds the column
    `run`. Raises SisError where the experiment names a dataset, metric or variant that the tables lack, and where runs
    that differ in more than their seed would silently stand beside the same numbers.
    """
    where = f"config/experiments/{experiment.name}.yaml"
    _check_names(published, experiment, where)
    chosen = [published.iloc[:0].assign(run="")]
    claims: dict[tuple[str, str, str], PlannedRun] = {}
    missed: dict[str, PlannedRun] = {}
    for planned in runs:
        run = _run(experiment, planned)
        if run.published is None:
            continue
        theirs = experiment.datasets[planned.dataset].published or planned.dataset
        rows = _where(published, dataset=theirs, method=planned.method, variant=run.published)
        if rows.empty:
            missed[planned.name] = planned
            continue
        first = claims.setdefault((planned.dataset, planned.method, run.published), planned)
        _check_claims(experiment, first, planned, where)
        chosen.append(rows.assign(dataset=planned.dataset, run=planned.name))
    met = {str(name) for rows in chosen for name in rows["run"]}
    for planned in missed.values():
        if planned.name not in met:
            _check_variant(published, experiment, planned, where)
    beside = pd.concat(chosen[1:] or chosen, ignore_index=True)
    return beside.assign(metric=[experiment.published_metrics.get(str(m), str(m)) for m in beside["metric"]])


def _file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.csv"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.csv")]
        raise SisError(f"no table of published numbers called {name!r}", where=folder, fix=did_you_mean(name, known))
    return path


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, cells) of every row; all cells are text, none is null."""
    uneven: list[int] = []

    def note(row: csv.InvalidRow) -> str:
        uneven.append(row.number)
        return "skip"

    try:
        table = csv.read_csv(
            path,
            csv.ReadOptions(use_threads=False),
            csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note),
            csv.ConvertOptions(column_types=dict.fromkeys(PUBLISHED_COLUMNS, pa.string()), strings_can_be_null=False),
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise SisError(f"cannot read the published numbers: {error}", where=path) from error
    columns = "columns are " + ", ".join(PUBLISHED_COLUMNS)
    if tuple(table.column_names) != PUBLISHED_COLUMNS:
        raise SisError("not a table of published numbers", where=f"{path}:1", fix=columns)
    if uneven:
        raise SisError(f"the row has not {len(PUBLISHED_COLUMNS)} cells", where=f"{path}:{uneven[0]}", fix=columns)
    if not table.num_rows:
        raise SisError("the table holds no numbers", where=path)
    for index, row in enumerate(table.to_pylist()):
        yield f"{path}:{index + 2}", row


def _check(row: dict[str, str], place: str) -> None:
    for column, cell in row.items():
        if not cell.isprintable():
            raise SisError(f"{column}: the cell holds a line break or another control character", where=place)
        if cell != cell.strip():
            raise SisError(f"{column}: {cell!r} begins or ends with a blank", where=place)
    for column in ("paper", "table"):
        if not row[column]:
            raise SisError(f"{column} is empty", where=place, fix="say where the number stands")
    for column in ("dataset", "method", "metric"):
        if not _NAME.fullmatch(row[column]):
            raise SisError(f"{column}: {row[column]!r} is no name", where=place, fix="use a-z, 0-9, dots, dashes, _")
    if not _NUMBER.fullmatch(row["value"]):
        raise SisError(f"value: {row['value']!r} is no number", where=place, fix="leave out rows that print none")
    if row["direction"] not in DIRECTIONS:
        raise SisError(
            f"unknown direction {row['direction']!r}", where=place, fix=did_you_mean(row["direction"], DIRECTIONS)
        )


def _check_names(published: pd.DataFrame, experiment: Experiment, where: str) -> None:
    """Refuse names of datasets and metrics that the papers' tables do not hold."""
    named = {"dataset": [use.published for use in experiment.datasets.values() if use.published]}
    named["metric"] = list(experiment.published_metrics)
    for column, names in named.items():
        known = {str(cell) for cell in published[column]}
        for name in names:
            if name not in known:
                fix = did_you_mean(name, known)
                raise SisError(f"the papers' tables have no {column} {name!r}", where=where, fix=fix)


def _check_claims(experiment: Experiment, first: PlannedRun, second: PlannedRun, where: str) -> None:
    """Refuse two runs beside the same numbers, unless they differ in their seed only or both say so themselves."""
    one, other = _run(experiment, first), _run(experiment, second)
    alike = (one.fit, one.sample) == (other.fit, other.sample)
    if not alike and not all("published" in run.model_fields_set for run in (one, other)):
        raise SisError(
            f"runs {first.name!r} and {second.name!r} differ, yet both stand beside the same published numbers",
            where=where,
            fix="give each its `published:`, a variant of the papers' tables, '' for their main setting, null for none",
        )


def _check_variant(published: pd.DataFrame, experiment: Experiment, planned: PlannedRun, where: str) -> None:
    """Refuse the variant of a run that met no number; without one, the papers have simply nothing on it."""
    variant = _run(experiment, planned).published
    if variant:
        method = planned.method
        known = [str(v) for v in _where(published, method=method)["variant"] if v]
        raise SisError(
            f"run {planned.name!r}: the papers' tables have no variant {variant!r} of {method} on its datasets",
            where=where,
            fix=did_you_mean(variant, known) if known else f"methods: {did_you_mean(method, published['method'])}",
        )


def _run(experiment: Experiment, planned: PlannedRun) -> Run:
    """What the experiment says of a run; runs that `rule_methods` adds have nothing but their method."""
    return experiment.runs.get(planned.name) or Run(method=planned.method)


def _where(published: pd.DataFrame, **columns: str) -> pd.DataFrame:
    """The rows whose columns hold exactly these cells."""
    marks = pd.Series(True, index=published.index)
    for column, cell in columns.items():
        marks &= published[column] == cell
    return published.loc[marks]
