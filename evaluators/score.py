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
from evaluators.definition import Facts, protocol_record, slot_of, stand_in_of
from evaluators.discovery import MetricFile, find_metric
from evaluators.metric import Finished, Judge
from evaluators.partial import Partial, load_partial
from sis.config.protocols import Entry, ProtocolCard, ProtocolRecord, protocol_id
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
    slots: dict[str, list[str]]
    labels: LabelSpace
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, kind: str) -> Measured:
        """Open partials of `kind` ("images" or "reference"). Raises SisError for the other kind."""
        meta = read_manifest(folder, "partials").meta
        if "slots" not in meta:
            raise SisError("partials of an older release", where=folder, fix="run measure again")
        facts = Facts.model_validate(meta["facts"])
        if facts.kind != kind:
            raise SisError(f"these are partials of {facts.kind}, expected {kind}", where=folder)
        labels = LabelSpace.model_validate(meta["labels"])
        return cls(folder, facts, meta["slots"], labels, meta["images"])

    def load(self, metric: MetricFile, card: ProtocolCard) -> Partial | None:
        """The rows that a metric reads, None where the set has too few samples for it.

        Raises SisError when they were measured under other settings than the card's.
        """
        slot = slot_of(metric, card, self.facts)
        if slot.name in self.slots:
            return metric.merge([load_partial(self.folder / name)[0] for name in self.slots[slot.name]])
        if slot.samples > self.facts.samples:
            return None
        raise SisError(
            f"the partial of {slot.metric.stem} was measured under another protocol than {card.name!r}",
            where=self.folder,
            fix="run measure again",
        )


def score(partials: Path, reference: Path, card: ProtocolCard, out: Path) -> pa.Table:
    """Score a measured image set and write `out` (Parquet, schema SCORES) with its manifest.

    Args:
        partials: folder that `measure_images` wrote.
        reference: folder that `measure_reference` wrote.

    Raises SisError when either was measured under another protocol, of other data or with other weights.
    """
    run = RunRecord.start(seeds={"bootstrap": card.bootstrap.seed})
    ours, real = Measured.open(partials, "images"), Measured.open(reference, "reference")
    _check_same_data(ours, real, card)
    _check_same_networks(ours, real)
    rows: list[dict[str, Any]] = []
    protocols: dict[str, Any] = {}
    names: set[str] = set()
    for entry in card.entries():
        record = protocol_record(entry, ours.facts, real.facts, ours.meta)
        if record.metric in names:
            raise SisError(f"two metrics of protocol {card.name!r} are both called {record.metric}")
        names.add(record.metric)
        protocols[protocol_id(record)] = record.model_dump(mode="json")
        rows += _rows(entry, ours, real, record)
    table = pa.Table.from_pylist(rows, schema=SCORES)
    meta = {"run": ours.meta["run"], "run_id": ours.meta["run_id"], "protocol": protocols}
    meta["card"] = card.model_dump(mode="json")
    with atomic_path(out) as temporary:
        write_table_file(table, temporary, SCORES, {"protocol": card.name})
        publish_file(temporary, out, "scores", meta, run)
    return table


def _check_same_data(ours: Measured, real: Measured, card: ProtocolCard) -> None:
    """Both of the protocol's dataset, at one size: statistics of another size are of other pictures."""
    for found in (ours, real):
        if found.meta["dataset"] != card.dataset:
            fault = f"partials of {found.meta['dataset']}, protocol {card.name!r} judges {card.dataset}"
            raise SisError(fault, where=found.folder, fix="measure them again under this protocol")
    if ours.meta["split"] != card.split:
        fault = f"partials of {card.dataset}/{ours.meta['split']}, protocol {card.name!r} judges {card.split}"
        raise SisError(fault, where=ours.folder, fix="measure them again under this protocol")
    if real.meta["split"] != card.reference.split:
        fault = f"the reference is of {real.meta['split']}, protocol {card.name!r} asks for {card.reference.split}"
        raise SisError(fault, where=real.folder, fix="measure the reference again")
    sizes = [f"{found.facts.size[0]}x{found.facts.size[1]}" for found in (real, ours)]
    if sizes[0] != sizes[1]:
        fault = f"the reference is of images of {sizes[0]}, the others are of {sizes[1]}"
        raise SisError(fault, where=real.folder, fix="measure the reference again")


def _check_same_networks(ours: Measured, real: Measured) -> None:
    for name, record in real.facts.networks.items():
        if ours.facts.networks.get(name, record) != record:
            raise SisError(
                f"the reference was measured with another {name} than the images",
                where=real.folder,
                fix="measure the reference again",
            )


def _rows(entry: Entry, ours: Measured, real: Measured, record: ProtocolRecord) -> list[dict[str, Any]]:
    metric, card = find_metric(entry.stem), entry.card
    module = metric.module
    stand_in = stand_in_of(metric, card, ours.facts)
    mark = f"[stand-in:{stand_in}]" if stand_in else ""
    lacking = _lacking(metric, card, ours)
    common = {k: ours.meta[k] for k in ("dataset", "run", "run_id", "method", "title", "kind", "role", "seed")}
    common |= {
        "protocol": card.name,
        "protocol_id": protocol_id(record),
        "unit": module.UNIT,
        "direction": module.DIRECTION,
        "stand_in": stand_in,
        "n_maps": 0 if lacking else ours.facts.maps,
        "n_images": 0 if lacking else _n_images(metric, card, ours),
    }
    total = {**common, "metric": record.metric + mark, "class_name": ""}
    if lacking:
        return [{**total, **_number(math.nan, np.empty(0), lacking)}]
    point, replicates = value_of(metric, card, ours, real)
    unverified = "" if all(n.verified for n in record.networks) else "unverified weights (no published hash)"
    note = "; ".join(text for text in (point.note, unverified) if text)
    out = [{**total, **_number(point.value[0], replicates.value, note)}]
    class_metric = f"{metric.class_metric}{record.metric.removeprefix(entry.stem)}{mark}"
    for label, value in point.by_class.items():
        note = "" if not math.isnan(value[0]) else "does not occur"
        number = _number(value[0], replicates.by_class[label], note)
        out.append({**common, **number, "metric": class_metric, "class_name": label})
    return out


def value_of(metric: MetricFile, card: ProtocolCard, ours: Measured, real: Measured) -> tuple[Finished, Finished]:
    """The value of a metric and its bootstrap replicates; a combined metric's from those of its parts.

    Raises SisError where its partials were measured under other settings.
    """
    if metric.parts:
        found = {part: value_of(find_metric(part), card, ours, real) for part in metric.parts}
        combine = metric.combine
        points, replicates = ({part: pair[i] for part, pair in found.items()} for i in (0, 1))
        return combine(points, card), combine(replicates, card)
    rows = _NOBODY if metric.module.NEEDS == "meta" else ours.load(metric, card)
    assert rows is not None  # callers ask `_lacking` first
    judge = Judge(card, ours.labels, None, real.load(metric, card) if metric.uses_reference else None, ours.meta)
    return finish(metric, rows, judge)


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
        # Shifted replicates may leave the range: no distance is below 0, no share above 1.
        shifted = replicates.value + point.value - np.nanmean(replicates.value)
        replicates = Finished(np.clip(shifted, *metric.module.RANGE), replicates.by_class)
    return point, replicates


def _lacking(metric: MetricFile, card: ProtocolCard, ours: Measured) -> str:
    """Why there is nothing to compute a metric from, "" where there is."""
    for part in metric.parts or (metric.stem,):
        read = find_metric(part)
        if read.module.NEEDS != "meta" and ours.load(read, card) is None:
            return f"{ours.facts.samples} of {read.module.samples(card)} samples a map"
    return ""


def _n_images(metric: MetricFile, card: ProtocolCard, ours: Measured) -> int:
    if metric.module.NEEDS == "meta":
        return ours.meta["rows"]
    if card.samples.drawn and getattr(metric.module, "USES_REFERENCE", False):
        return card.samples.drawn.images
    return ours.facts.maps * metric.module.samples(card)


def _number(value: float, replicates: NDArray[np.float64], note: str) -> dict[str, Any]:
    """The columns of one number; undefined values become null and lose their interval."""
    if math.isnan(value):
        return {"value": None, "low": None, "high": None, "note": note, "replicates": []}
    low, high = interval(replicates)
    listed = [None if math.isnan(r) else float(r) for r in replicates]
    bounds = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
    return {"value": float(value), **bounds, "note": note, "replicates": listed}
