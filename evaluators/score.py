# SPDX-License-Identifier: Apache-2.0
"""Partials become rows of the score table: value, interval over label maps, the protocol behind both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluators.bootstrap import interval, multiplicities
from evaluators.definition import Facts, partial_key, protocol_record, stand_in_of
from evaluators.discovery import MetricFile, find_metric
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial, load_partial
from sis.config.protocols import ProtocolCard, ProtocolRecord, protocol_id
from sis.data.atomic import atomic_path
from sis.data.labels import LabelSpace
from sis.data.manifest import publish_file, read_manifest
from sis.data.provenance import RunRecord
from sis.data.schemas import SCORES
from sis.data.tables import write_table_file
from sis.errors import SisError

_NOBODY = Partial([], np.empty(0, np.int32), {})


@dataclass(frozen=True)
class Measured:
    """An opened folder of partials."""

    folder: Path
    facts: Facts
    keys: dict[str, str]
    labels: LabelSpace
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, kind: str) -> Measured:
        """Open partials of `kind` ("images" or "reference"). Raises SisError for the other kind."""
        meta = read_manifest(folder, "partials").meta
        facts = Facts.model_validate(meta["facts"])
        if facts.kind != kind:
            raise SisError(f"these are partials of {facts.kind}, expected {kind}", where=folder)
        labels = LabelSpace.model_validate(meta["labels"])
        return cls(folder, facts, meta["keys"], labels, meta["images"])

    def load(self, metric: MetricFile, card: ProtocolCard) -> Partial | None:
        """The partial that a metric reads, None where nothing was measured for it.

        Raises SisError when it was measured under other settings than the card's.
        """
        source = find_metric(metric.source)
        if source.stem not in self.keys:
            return None
        if self.keys[source.stem] != partial_key(source, card, self.facts):
            raise SisError(
                f"the partial of {source.stem} was measured under another protocol than {card.name!r}",
                where=self.folder,
                fix="run measure again",
            )
        return load_partial(self.folder / f"{source.stem}.parquet")[0]


def score(partials: Path, reference: Path, card: ProtocolCard, out: Path) -> pa.Table:
    """Score a measured image set and write `out` (Parquet, schema SCORES) with its manifest.

    Args:
        partials: folder that `measure_images` wrote.
        reference: folder that `measure_reference` wrote.

    Raises SisError when either was measured under another protocol or with other weights.
    """
    run = RunRecord.start(seeds={"bootstrap": card.bootstrap.seed})
    ours, real = Measured.open(partials, "images"), Measured.open(reference, "reference")
    _check_same_networks(ours, real)
    rows: list[dict[str, Any]] = []
    protocols: dict[str, Any] = {}
    for name in card.metrics:
        metric = find_metric(name)
        record = protocol_record(metric, card, ours.facts, real.facts, ours.meta)
        protocols[protocol_id(record)] = record.model_dump(mode="json")
        rows += _rows(metric, card, ours, real, record)
    table = pa.Table.from_pylist(rows, schema=SCORES)
    meta = {"run": ours.meta["run"], "run_id": ours.meta["run_id"], "protocol": protocols}
    meta["card"] = card.model_dump(mode="json")
    with atomic_path(out) as temporary:
        write_table_file(table, temporary, SCORES, {"protocol": card.name})
        publish_file(temporary, out, "scores", meta, run)
    return table


def _check_same_networks(ours: Measured, real: Measured) -> None:
    for name, record in real.facts.networks.items():
        if ours.facts.networks.get(name, record) != record:
            raise SisError(
                f"the reference was measured with another {name} than the images",
                where=real.folder,
                fix="measure the reference again",
            )


def _rows(
    metric: MetricFile, card: ProtocolCard, ours: Measured, real: Measured, record: ProtocolRecord
) -> list[dict[str, Any]]:
    module = metric.module
    rows = _NOBODY if module.NEEDS == "meta" else ours.load(metric, card)
    common = {k: ours.meta[k] for k in ("dataset", "run", "run_id", "method", "title", "kind", "role", "seed")}
    stand_in = stand_in_of(metric, ours.facts)
    common |= {
        "protocol": card.name,
        "protocol_id": protocol_id(record),
        "unit": module.UNIT,
        "direction": module.DIRECTION,
        "stand_in": stand_in,
        "n_maps": ours.facts.maps if rows is not None else 0,
        "n_images": _n_images(metric, card, ours, rows),
    }
    name = module.name(card) + (f"[stand-in:{stand_in}]" if stand_in else "")
    if rows is None:
        needed = module.samples(card)
        note = f"{ours.facts.samples} of {needed} samples a map"
        return [{**common, **_number(math.nan, np.empty(0), note), "metric": name, "class_name": ""}]
    judge = Judge(card, ours.labels, None, real.load(metric, card) if metric.uses_reference else None, ours.meta)
    point, replicates = finish(metric, rows, judge)
    out = [{**common, **_number(point.value[0], replicates.value, point.note), "metric": name, "class_name": ""}]
    for label, value in point.by_class.items():
        note = "" if not math.isnan(value[0]) else "does not occur"
        number = _number(value[0], replicates.by_class[label], note)
        out.append({**common, **number, "metric": metric.class_metric, "class_name": label})
    return out


def finish(metric: MetricFile, rows: Partial, judge: Judge) -> tuple[Finished, Finished]:
    """The value (weights of one) and the bootstrap replicates of a metric.

    Metrics without rows, and sets of one label map, have no replicates.
    """
    maps = len(rows.maps)
    point: Finished = metric.module.finish(rows, np.ones((1, maps)), judge)
    if maps < 2:
        empty = np.empty(0)
        return point, Finished(empty, dict.fromkeys(point.by_class, empty))
    weights = multiplicities(judge.card.bootstrap.seed, judge.card.bootstrap.replicates, maps)
    replicates: Finished = metric.module.finish(rows, weights, judge)
    if metric.recentre:
        replicates = Finished(replicates.value + point.value - np.nanmean(replicates.value), replicates.by_class)
    return point, replicates


def _n_images(metric: MetricFile, card: ProtocolCard, ours: Measured, rows: Partial | None) -> int:
    if rows is None:
        return 0
    if metric.module.NEEDS == "meta":
        return ours.meta["rows"]
    return ours.facts.maps * metric.module.samples(card)


def _number(value: float, replicates: NDArray[np.float64], note: str) -> dict[str, Any]:
    """The columns of one number; undefined values become null and lose their interval."""
    if math.isnan(value):
        return {"value": None, "low": None, "high": None, "note": note, "replicates": []}
    low, high = interval(replicates)
    listed = [None if math.isnan(r) else float(r) for r in replicates]
    bounds = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
    return {"value": float(value), **bounds, "note": note, "replicates": listed}
