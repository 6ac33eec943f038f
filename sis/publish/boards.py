# SPDX-License-Identifier: Apache-2.0
"""The leaderboard as plain data: one board for each dataset and protocol, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sis.data.image_set import ImageSet
from sis.publish.columns import SPEED
from sis.publish.context import PublishContext
from sis.publish.gallery import Gallery
from sis.publish.seeds import OverSeeds
from sis.publish.tables import Cell, Row, Table
from sis.publish.timings import summarise

#: Layout version of leaderboard.json.
FORMAT = 1

_BADGES = {
    "python": "reproduced",
    "command": "reproduced",
    "rule": "reproduced",
    "images": "re-evaluated",
}

_IMAGE_SET_FACTS = ("samples_per_map", "batch_size", "sampling_seconds", "device", "threads")


@dataclass(frozen=True)
class BoardSource:
    """What one board is made of: its table, its per-class tables (one a protocol id of the IoU), means over seeds."""

    table: Table
    classes: Sequence[Table] = ()
    seeds: OverSeeds | None = None


def page_data(sources: Sequence[BoardSource], galleries: Mapping[str, Gallery], context: PublishContext) -> dict:
    """Describe the whole page as JSON data; equal inputs give equal data (it holds no date of its making).

    `galleries` is keyed by dataset; the pictures themselves are not part of the data.
    """
    datasets = [source.table.dataset for source in sources]
    return {
        "format": FORMAT,
        "experiment": context.experiment,
        "title": context.title,
        "description": context.description,
        "boards": [_board(source, context, datasets.count(source.table.dataset) > 1) for source in sources],
        "galleries": {dataset: _gallery(galleries[dataset]) for dataset in sorted(galleries)},
        "timings": [
            {**asdict(s), "hosts": list(s.hosts), "intervals": [list(i) for i in s.intervals]}
            for s in summarise(context.timings)
        ],
    }


def _board(source: BoardSource, context: PublishContext, ambiguous: bool) -> dict:
    table = source.table
    front = pareto_front(table)
    published = context.datasets.get(table.dataset)
    colours = {c.name: list(c.colour) for c in published.labels.classes} if published else {}
    return {
        "id": f"{table.dataset}-{table.protocol}",
        "label": f"{table.dataset} / {table.protocol}" if ambiguous else table.dataset,
        "dataset": table.dataset,
        "protocol": table.protocol,
        **_definitions(table, context.protocols),
        "columns": _columns(table, table.rows),
        "leading": table.leading_column(),
        "rows": [
            {
                **_row(row, context.commands.get(row.run_id, "")),
                "pareto": row.run_id in front,
                "facts": _facts(published.image_sets.get(row.run_id) if published else None),
                "classes": _classes(source.classes, row.run_id, colours),
            }
            for row in table.rows
        ],
        "seeds": None if source.seeds is None else _over_seeds(source.seeds),
    }


def _columns(table: Table, scale: Sequence[Row]) -> list[dict]:
    """Describe the columns; `scale` are the rows that the bars of a column have room for."""
    return [
        {
            **asdict(column),
            "arrow": column.arrow,
            "title": column.title,
            "ranked": any(row.cells[i].standing.rank is not None for row in table.contestants),
            "domain": _domain([row.cells[i] for row in scale]),
        }
        for i, column in enumerate(table.columns)
    ]


def _over_seeds(over: OverSeeds) -> dict:
    """Means over training seeds: a row a group, and for each column its differences by the two groups' names."""
    table, directions = over.table, {column.key: column.direction for column in over.table.columns}
    differences: dict[str, dict[str, dict[str, object]]] = {column.key: {} for column in over.compared}
    for one in over.differences:
        facts = {**asdict(one.estimate), "beyond_chance": one.estimate.beyond_chance, "seeds": len(one.seeds)}
        wins = one.wins(directions[one.column])
        differences[one.column].setdefault(one.first, {})[one.second] = {**facts, "wins": wins}
    return {
        "columns": _columns(table, table.contestants),
        "leading": table.leading_column(),
        "rows": [
            {
                **{name: getattr(row, name) for name in ("run", "title", "role", "method", "n_maps", "n_images")},
                "seeds": list(over.seeds.get(row.run, ())),
                "cells": [{**_cell(cell), "seeds": list(cell.seeds)} for cell in row.cells],
            }
            for row in table.rows
        ],
        "differences": differences,
    }


def pareto_front(table: Table) -> set[str]:
    """Run ids of contestants that nobody matches in both quality (first ranked column) and speed while beating one.

    Empty when nothing is ranked, nobody's speed is known, or speeds come from different devices.
    """
    leading = table.leading_column()
    speeds = [i for i, column in enumerate(table.columns) if column.metric == SPEED]
    if leading is None or len(speeds) != 1:
        return set()
    (speed,) = speeds
    sign = 1 if table.columns[leading].direction == "higher" else -1
    points: dict[str, tuple[float, float]] = {}
    for row in table.contestants:
        quality, fast = row.cells[leading].value, row.cells[speed].value
        if quality is not None and fast is not None and row.cells[leading].standing.rank is not None:
            points[row.run_id] = (sign * quality, fast)
    return {
        name
        for name, (q, s) in points.items()
        if not any(q2 >= q and s2 >= s and (q2, s2) != (q, s) for q2, s2 in points.values())
    }


def _definitions(table: Table, protocols: Mapping[str, Mapping[str, object]]) -> dict:
    """Split the protocol records of a table's columns into what all share and what each has of its own."""
    titles: dict[str, list[str]] = {}
    for column in table.columns:
        stand_in = f"[stand-in: {column.stand_in}]" if column.stand_in else ""
        parts = (column.name, column.detail, stand_in)
        titles.setdefault(column.protocol_id, []).append(" ".join(part for part in parts if part))
    facts = {i: dict(flatten(protocols.get(i, {}))) for i in titles}
    first = next(iter(facts.values()), {})
    shared = {n: v for n, v in first.items() if all(other.get(n) == v for other in facts.values())}
    return {
        "shared_facts": [[name, shared[name]] for name in sorted(shared)],
        "definitions": [
            {
                "protocol_id": i,
                "columns": names,
                "facts": [[name, facts[i][name]] for name in sorted(facts[i]) if name not in shared],
            }
            for i, names in titles.items()
        ],
    }


def flatten(facts: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Turn nested JSON into sorted (name, value) pairs of text, names joined by dots."""
    pairs: list[tuple[str, str]] = []
    for key in sorted(facts):
        value, name = facts[key], f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += flatten({str(k): v for k, v in value.items()}, f"{name}.")
        elif isinstance(value, list | tuple):
            pairs.append((name, ", ".join(map(str, value))))
        else:
            pairs.append((name, "none" if value is None else str(value)))
    return pairs


def _row(row: Row, command: str) -> dict:
    return {
        **{k: v for k, v in asdict(row).items() if k != "cells"},
        "badge": _BADGES.get(row.kind, row.kind),
        "command": command,
        "cells": [_cell(cell) for cell in row.cells],
    }


def _cell(cell: Cell) -> dict:
    return {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "note": cell.note,
        "rank": cell.standing.rank,
        "mark": cell.standing.mark,
        "published": [{**asdict(p), "source": p.source} for p in cell.published],
    }


def _domain(cells: Sequence[Cell]) -> list[float] | None:
    """The range that a column's bars share, controls included so that the scale means something."""
    ends = [end for cell in cells for end in (cell.value, cell.low, cell.high) if end is not None]
    return [min(ends), max(ends)] if ends else None


def _facts(images: ImageSet | None) -> dict:
    if images is None:
        return {}
    facts = {key: images.meta[key] for key in _IMAGE_SET_FACTS if images.meta.get(key) is not None}
    return {**facts, **{key: images.run[key] for key in ("host", "commit") if images.run.get(key)}}


def _classes(tables: Sequence[Table], run_id: str, colours: Mapping[str, list[int]]) -> list[dict]:
    found = next(((table, row) for table in tables for row in table.rows if row.run_id == run_id), None)
    if found is None:
        return []
    table, row = found
    return [
        {
            "name": column.name,
            "unit": column.unit,
            "digits": column.digits,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "colour": colours.get(column.name),
        }
        for column, cell in zip(table.columns, row.cells, strict=True)
    ]


def _gallery(gallery: Gallery) -> dict:
    return {
        "rule": gallery.rule,
        "image_ids": list(gallery.ids),
        "sample_rule": gallery.sample_rule if gallery.samples else "",
        "sample_image_ids": [group.image_id for group in gallery.samples],
    }
