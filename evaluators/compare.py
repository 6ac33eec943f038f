# SPDX-License-Identifier: Apache-2.0
"""Compares two measured image sets on the same label maps: paired differences with intervals and significance.

The sets share the label maps of every bootstrap replicate i, so A_i - B_i is a replicate of the difference; interval
and p-value come from those (evaluators/significance.py). Holm's correction keeps the chance of any false verdict among
the metrics of one table below 5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluators.bootstrap import interval
from evaluators.definition import called, protocol_record, stand_in_of, uses_reference
from evaluators.discovery import MetricFile, find_metric
from evaluators.metric import Finished
from evaluators.partial import Partial
from evaluators.per_image import comparable, judge_of, name_of, of_maps, per_image
from evaluators.score import Measured, finish, value_of
from evaluators.significance import holm, p_value
from sis.config.base import StrictModel
from sis.config.protocols import Entry, ProtocolCard, ProtocolRecord, protocol_id
from sis.data.atomic import write_text_atomic
from sis.data.tables import write_table
from sis.errors import SisError, did_you_mean, first_of

#: Differences whose p after Holm is below this are called shown.
LEVEL = 0.05

Array = NDArray[np.float64]
Verdict = Literal["A better", "B better", "different", "no difference shown", "no interval", "undefined"]


class Side(StrictModel):
    """Who is compared: an image set's own facts, and a hash of its pictures."""

    run: str
    run_id: str
    method: str
    title: str
    seed: int
    images_sha256: str


class Row(StrictModel):
    """One metric, or one class of one, of both sets. What is null is undefined; `note` then says why.

    difference: A minus B, with its 95 % interval; p_holm: p_value corrected for the rows of its family (the metrics, or
    the classes of one metric); wins, ties, losses: label maps on which A is better, equal, worse; win_rate: share of
    wins, a tie being half a win.
    """

    metric: str
    class_name: str
    unit: str
    direction: str
    protocol_id: str
    stand_in: str
    a: float | None = None
    b: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    replicates: int = 0
    wins: int | None = None
    ties: int | None = None
    losses: int | None = None
    win_rate: float | None = None
    verdict: Verdict = "undefined"
    note: str = ""


class Comparison(StrictModel):
    """Everything that `compare` found; the JSON file."""

    protocol: str
    title: str
    label_maps: int
    replicates: int
    bootstrap_seed: int
    level: float
    a: Side
    b: Side
    rows: list[Row]


#: The Parquet file: the rows of a comparison.
COMPARISON = pa.schema(
    [
        *[(n, pa.string()) for n in ("metric", "class_name", "unit", "direction", "protocol_id", "stand_in")],
        *[(n, pa.float64()) for n in ("a", "b", "difference", "low", "high", "p_value", "p_holm")],
        *[(n, pa.int64()) for n in ("replicates", "wins", "ties", "losses")],
        ("win_rate", pa.float64()),
        *[(n, pa.string()) for n in ("verdict", "note")],
    ]
)


@dataclass(frozen=True)
class Paired:
    """Two opened sets, and the real images that distribution metrics compare with."""

    a: Measured
    b: Measured
    real: Measured | None = None

    @classmethod
    def open(cls, a: Path, b: Path, reference: Path | None) -> Paired:
        """Open them. Raises SisError for other label maps or label tables, and a reference that others judged."""
        sets = cls(
            Measured.open(a, "images"),
            Measured.open(b, "images"),
            Measured.open(reference, "reference") if reference else None,
        )
        _refuse("A and B were drawn from other label maps", _differing(_maps(sets.a), _maps(sets.b)))
        if sets.a.labels != sets.b.labels:
            raise SisError("A and B were judged with different label tables", fix="measure both again")
        if sets.real is not None:
            theirs = sets.real.facts.networks
            judges = {name: record.model_dump() for name, record in sets.a.facts.networks.items() if name in theirs}
            compared = {name: record.model_dump() for name, record in theirs.items() if name in judges}
            _refuse("the reference was judged by other networks", _differing(judges, compared), "measure it again")
        return sets

    def stand_ins(self, entry: Entry) -> list[str]:
        """How the stand-ins behind a metric of both sets differ."""
        metric = find_metric(entry.stem)
        one, two = (stand_in_of(metric, entry.card, s.facts) or None for s in (self.a, self.b))
        return _differing({called(entry): one}, {called(entry): two})

    def records(self, entry: Entry) -> tuple[ProtocolRecord, list[str]]:
        """What defines A's number, and how the definition of B's differs from it."""
        one, two = (
            protocol_record(entry, s.facts, self.real.facts if self.real else s.facts, s.meta) for s in (self.a, self.b)
        )
        return one, _differing(one.model_dump(mode="json"), two.model_dump(mode="json"))


def compare(
    a: Path,
    b: Path,
    card: ProtocolCard,
    reference: Path | None = None,
    metrics: Sequence[str] = (),
    classes: bool = False,
) -> Comparison:
    """Compare two folders of partials, metric by metric, and with `classes` class by class.

    Args:
        reference: partials of the reference; without, metrics that need one are left undefined.
        metrics: names in score tables or file stems; none: all of the card.

    Raises SisError for sets that were judged under different protocols, on other label maps or with other stand-ins,
    and for unknown metrics.
    """
    sets = Paired.open(a, b, reference)
    entries = chosen(card, metrics)
    stand_ins = [text for entry in entries for text in sets.stand_ins(entry)]
    _refuse("A and B were judged with other stand-ins", stand_ins, "measure both with the same folder of weights")
    different = [
        f"{entry.stem}: {text}"
        for entry in entries
        if find_metric(entry.stem).module.NEEDS != "meta"
        for text in sets.records(entry)[1]
    ]
    _refuse("A and B were judged under different protocols", different)
    rows = [row for entry in entries for row in _rows(entry, sets, classes)]
    return Comparison(
        protocol=card.name,
        title=card.title,
        label_maps=sets.a.facts.maps,
        replicates=card.bootstrap.replicates,
        bootstrap_seed=card.bootstrap.seed,
        level=LEVEL,
        a=_side(sets.a),
        b=_side(sets.b),
        rows=_judged(rows),
    )


def chosen(card: ProtocolCard, metrics: Sequence[str]) -> list[Entry]:
    """The entries of a card whose name or stem is among `metrics`; all for none. Raises SisError for unknown names."""
    entries = card.entries()
    names = [called(e) for e in entries]
    unknown = [m for m in metrics if m not in names and m not in [e.stem for e in entries]]
    if unknown:
        raise SisError(
            f"protocol {card.name!r} has no metric {unknown[0]!r}",
            fix=did_you_mean(unknown[0], [*names, *(e.stem for e in entries)]),
        )
    return [e for e, n in zip(entries, names, strict=True) if not metrics or n in metrics or e.stem in metrics]


def write_comparison(found: Comparison, folder: Path) -> list[Path]:
    """Write comparison.json and comparison.parquet to a folder and return their paths."""
    paths = [folder / "comparison.json", folder / "comparison.parquet"]
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(paths[0], found.model_dump_json(indent=1) + "\n")
    table = pa.Table.from_pylist([row.model_dump() for row in found.rows], schema=COMPARISON)
    write_table(table, paths[1], COMPARISON, found.model_dump(mode="json", exclude={"rows"}))
    return paths


def _rows(entry: Entry, sets: Paired, classes: bool) -> Iterator[Row]:
    metric = find_metric(entry.stem)
    module, (record, different) = metric.module, sets.records(entry)
    stand_in = stand_in_of(metric, entry.card, sets.a.facts)
    name = name_of(entry, sets.a.facts)
    row = Row(
        metric=name,
        class_name="",
        unit=module.UNIT,
        direction=module.DIRECTION,
        protocol_id=protocol_id(record),
        stand_in=stand_in,
    )
    if uses_reference(metric) and sets.real is None:
        yield row.model_copy(update={"note": "needs the partials of the reference"})
        return
    found = [_found(entry, measured, sets.real) for measured in (sets.a, sets.b)]
    missing = [f"{name}: {f}" for name, f in zip("AB", found, strict=True) if isinstance(f, str)]
    if missing:
        yield row.model_copy(update={"note": "; ".join(missing)})
        return
    one, two = (f for f in found if not isinstance(f, str))
    note = f"judged differently: {first_of(different)}" if different else ""
    wins = _wins(one.by_map, two.by_map, module.DIRECTION)
    caveat = {} if note or all(n.verified for n in record.networks) else {"note": "unverified weights"}
    facts = _difference(one.point, two.point, one.replicates, two.replicates, note)
    yield row.model_copy(update=caveat | facts | wins)
    class_metric = metric.class_metric + name.removeprefix(entry.stem)
    for label in one.classes if classes else ():
        (a, ours), (b, theirs) = one.classes[label], two.classes[label]
        facts = _difference(a, b, ours, theirs, note)
        yield row.model_copy(update=caveat | facts | {"metric": class_metric, "class_name": label})


@dataclass(frozen=True)
class _Found:
    """A metric of one set: value, replicates, those of each class, and its mean over each label map, if it has one."""

    point: float
    replicates: Array
    classes: dict[str, tuple[float, Array]]
    by_map: Array | None = None


def _found(entry: Entry, measured: Measured, real: Measured | None) -> _Found | str:
    """The metric of one set, or why there is none."""
    metric, card = find_metric(entry.stem), entry.card
    for stem in metric.parts:
        if isinstance(missing := _loaded(find_metric(stem), card, measured), str):
            return missing
    if metric.parts:
        return _of(*value_of(metric, card, measured, real or measured))
    rows = _loaded(metric, card, measured)
    if isinstance(rows, str):
        return rows
    judge = judge_of(metric, card, measured, real)
    values = per_image(metric, rows, judge) if comparable(metric) else None
    return replace(_of(*finish(metric, rows, judge)), by_map=None if values is None else of_maps(rows, values))


def _loaded(metric: MetricFile, card: ProtocolCard, measured: Measured) -> Partial | str:
    """The rows that a metric reads, or why there are none."""
    if metric.module.NEEDS == "meta":
        return Partial([], np.empty(0, np.int32), {})
    rows = measured.load(metric, card)
    return f"{measured.facts.samples} of {metric.module.samples(card)} samples a map" if rows is None else rows


def _of(point: Finished, replicates: Finished) -> _Found:
    classes = {name: (float(v[0]), replicates.by_class[name]) for name, v in point.by_class.items()}
    return _Found(float(point.value[0]), replicates.value, classes)


def _difference(a: float, b: float, ours: Array, theirs: Array, note: str = "") -> dict[str, Any]:
    """The columns of one difference."""
    values: dict[str, Any] = {"a": _null(a), "b": _null(b)}
    if np.isnan(a - b) or note:
        undefined = f"undefined for {' and '.join(n for n, v in (('A', a), ('B', b)) if np.isnan(v))}"
        return values | {"note": note or undefined}
    differences = ours - theirs if len(ours) == len(theirs) else np.empty(0)
    low, high = interval(differences)
    return values | {
        "difference": a - b,
        "low": _null(low),
        "high": _null(high),
        "p_value": _null(p_value(differences)),
        "replicates": int((~np.isnan(differences)).sum()),
    }


def _wins(ours: Array | None, theirs: Array | None, direction: str) -> dict[str, Any]:
    """On how many label maps A is better than B by the mean of its images' own values."""
    if ours is None or theirs is None or direction == "none":
        return {}
    gain = (ours - theirs) * (1 if direction == "higher" else -1)
    wins, losses, n = int((gain > 0).sum()), int((gain < 0).sum()), int((~np.isnan(gain)).sum())
    rate = (wins + (n - wins - losses) / 2) / n if n else None
    return {"wins": wins, "ties": n - wins - losses, "losses": losses, "win_rate": rate}


def families(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that are corrected together: all metrics; the classes of each metric."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.metric, row.protocol_id) if row.class_name else ("", ""), []).append(row)
    return list(found.values())


def _judged(rows: list[Row]) -> list[Row]:
    """Correct the p-values of each family and say who is better."""
    corrected: dict[int, float] = {}
    for family in families(rows):
        tested = [row for row in family if row.p_value is not None]
        adjusted = holm([row.p_value for row in tested if row.p_value is not None])
        corrected |= {id(row): p for row, p in zip(tested, adjusted, strict=True)}
    return [_with_verdict(row, corrected.get(id(row))) for row in rows]


def _with_verdict(row: Row, p_holm: float | None) -> Row:
    verdict: Verdict = "undefined"
    if row.difference is not None and p_holm is None:
        verdict = "no interval"
    elif row.difference is not None and p_holm is not None:
        a_higher = row.low is not None and row.low > 0
        better: Verdict = "A better" if a_higher == (row.direction == "higher") else "B better"
        shown: Verdict = "different" if row.direction == "none" else better
        verdict = shown if p_holm < LEVEL else "no difference shown"
    return row.model_copy(update={"p_holm": p_holm, "verdict": verdict})


def _side(measured: Measured) -> Side:
    facts = {k: measured.meta[k] for k in ("run", "run_id", "method", "title", "seed")}
    return Side(**facts, images_sha256=measured.facts.digest)


def _maps(measured: Measured) -> dict[str, Any]:
    facts = measured.facts
    place = {k: measured.meta[k] for k in ("dataset", "split")}
    return place | {"size": facts.size, "label maps": facts.maps, "pairs_sha256": facts.pairs_sha256}


def _differing(one: dict[str, Any], two: dict[str, Any], prefix: str = "") -> list[str]:
    """`key A's value against B's` for all that two JSON objects do not share, long hashes cut short."""
    found: list[str] = []
    for key in sorted({*one, *two}):
        ours, theirs = one.get(key), two.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += _differing(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            found.append(f"{prefix}{key} {_short(ours)} against {_short(theirs)}")
    return found


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text


def _refuse(what: str, differing: list[str], fix: str = "compare sets that were judged alike") -> None:
    if differing:
        raise SisError(f"{what}: {first_of(differing)}", fix=fix)


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
