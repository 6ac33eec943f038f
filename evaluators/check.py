# SPDX-License-Identifier: Apache-2.0
"""`python -m evaluators check NAME`: the contract of one metric, on small synthetic data; the tests run it too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from evaluators.discovery import MetricFile, find_metric, stems
from evaluators.metric import Batch, Finished, Judge, Needs
from evaluators.partial import Partial
from sis.config.files import label_space, named, project_root
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

_PROTOCOL, _LABELS = "scenes-tiny", "scenes"
_MAPS, _SIDE, _FEATURES = 6, 32, 5
_META = {"role": "contestant", "device": "cpu", "threads": 1, "batch_size": 2, "rows": 12, "sampling_seconds": 3.0}


def check_metric(name: str) -> Iterator[str]:
    """The contract of a metric; yields each clause that holds, raises SisError at the first that does not."""
    metric, card = find_metric(name), named("protocols", _PROTOCOL, ProtocolCard)
    yield _constants(metric)
    yield _functions(metric, card)
    if metric.parts:
        yield _parts(metric, card)
        return
    bench = _Bench(metric, card)
    if bench.needs != "meta":
        yield from _merging(bench)
        yield _weights(bench)
    yield _range(bench)
    yield _direction(bench)
    if hasattr(metric.module, "per_image"):
        yield _per_image(bench)
    yield _nothing(bench)


class _Bench:
    """One metric with all that it needs to be run on made-up images."""

    def __init__(self, metric: MetricFile, card: ProtocolCard) -> None:
        self.metric, self.card, self.labels = metric, card, label_space(_LABELS)
        self.source = find_metric(metric.source)
        self.needs: Needs = self.source.module.NEEDS
        self.judge = Judge(card, self.labels, self._backbone(), None, dict(_META))
        if metric.uses_reference:
            self.judge = Judge(card, self.labels, self.judge.backbone, self.rows(1, 1.0), dict(_META))

    def _backbone(self) -> Any:
        if getattr(self.source.module, "BACKBONE", "") != "lpips":
            return None
        from evaluators.lpips_backbone import lpips_backbone
        from evaluators.weights import WeightStore

        nowhere = Path("no weights: the contract is checked with the stand-in")
        return lpips_backbone(self.card.lpips.net, WeightStore.open(nowhere, project_root() / "config/weights.yaml"))

    def batches(self, seed: int, quality: float = 0.5, maps: int = _MAPS) -> list[Batch]:
        """One batch a label map. quality: share of right pixels, of likeness to the reference, of difference."""
        rng = np.random.default_rng(seed)
        void = self.labels.void
        assert void is not None  # the built-in table has one
        ids = np.array([*self.labels.evaluated_ids, void], np.uint8)
        count = self.source.module.samples(self.card)
        found = []
        for i in range(maps):
            labels = rng.choice(ids, (count, _SIDE, _SIDE))
            right = (rng.random(labels.shape) < quality) & (labels != void)
            predicted = np.where(right, labels, rng.choice(ids[:-1], labels.shape)).astype(np.uint8)
            same = rng.integers(0, 256, (1, _SIDE, _SIDE, 3))
            other = rng.integers(0, 256, (count, _SIDE, _SIDE, 3))
            images = ((1 - quality) * same + quality * other).astype(np.uint8)
            references = rng.integers(0, 256, (count, _SIDE, _SIDE, 1)) // np.array([1, 2, 4])
            if self.needs == "images:reference":
                images = (quality * references + (1 - quality) * other[..., ::-1] // np.array([4, 2, 1])).astype(
                    np.uint8
                )
            features = (rng.normal(size=(count, _FEATURES)) + 9 * (1 - quality)).astype(np.float32)
            if hasattr(self.source.module, "features"):  # an extractor of its own: chances of ten ratings
                chances = np.exp(rng.normal(size=(count, 10)))
                features = (chances / chances.sum(1, keepdims=True)).astype(np.float32)
            found.append(
                Batch(
                    [f"map-{i}"] * count,
                    list(range(count)),
                    images,
                    labels,
                    predicted,
                    features,
                    references.astype(np.uint8),
                )
            )
        return found

    def parts(self, seed: int = 0, quality: float = 0.5) -> list[Partial]:
        return [self.source.module.map(batch, self.judge) for batch in self.batches(seed, quality)]

    def rows(self, seed: int = 0, quality: float = 0.5) -> Partial:
        return self.source.merge(self.parts(seed, quality))

    def finish(self, rows: Partial, weights: NDArray | None = None, judge: Judge | None = None) -> Finished:
        weights = np.ones((1, len(rows.maps))) if weights is None else weights
        with np.errstate(all="ignore"):  # undefined values are asked for on purpose
            return self.metric.module.finish(rows, weights, judge or self.judge)

    def value(self, rows: Partial) -> float:
        return float(self.finish(rows).value[0])

    def require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise SisError(f"{self.metric.stem}: {fault}", where=f"evaluators/metrics/{self.metric.stem}.py")


def _constants(metric: MetricFile) -> str:
    module = metric.module
    faults = [n for n in ("TITLE", "UNIT", "DIRECTION", "RANGE", "NEEDS", "VERSION") if not hasattr(module, n)]
    if not faults:
        low, high = module.RANGE
        wrong = {
            "TITLE": not isinstance(module.TITLE, str) or not module.TITLE.strip() or "\n" in module.TITLE,
            "UNIT": not isinstance(module.UNIT, str),
            "DIRECTION": module.DIRECTION not in ("higher", "lower", "none"),
            "RANGE": not low < high,
            "NEEDS": module.NEEDS not in get_args(Needs),
            "VERSION": type(module.VERSION) is not int or module.VERSION < 1,
        }
        faults = [n for n, bad in wrong.items() if bad]
    if faults:
        raise SisError(f"{metric.stem}: missing or senseless {', '.join(faults)}", where="evaluators/metrics")
    return f"the constants are complete: {module.TITLE}, {module.DIRECTION}, {module.RANGE}, version {module.VERSION}"


def _functions(metric: MetricFile, card: ProtocolCard) -> str:
    module, where = metric.module, f"evaluators/metrics/{metric.stem}.py"
    if metric.source not in stems("metrics"):
        raise SisError(f"SOURCE {metric.source!r} is no metric", where=where)
    maps = metric.source == metric.stem and module.NEEDS not in ("meta", "parts")
    if hasattr(module, "map") != maps:
        raise SisError("`map` is to be there exactly when no SOURCE, no parts and no facts replace it", where=where)
    if (module.NEEDS == "parts") != bool(metric.parts) or hasattr(module, "finish") == bool(metric.parts):
        raise SisError("a metric has PARTS and `combine` with NEEDS 'parts', else `finish`", where=where)
    if not module.name(card) or module.samples(card) < 1:
        raise SisError("`name` is empty or `samples` below 1", where=where)
    try:
        json.dumps(module.settings(card), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SisError(f"`settings` is no JSON: {error}", where=where) from error
    return f"it is called {module.name(card)} and its settings are plain data"


def _parts(metric: MetricFile, card: ProtocolCard) -> str:
    """Parts exist and have none themselves; undefined parts make an undefined whole; replicates stay in their rows."""
    where = f"evaluators/metrics/{metric.stem}.py"
    nested = [part for part in metric.parts if find_metric(part).parts]
    if nested:
        raise SisError(f"parts with parts: {', '.join(nested)}", where=where)
    values = np.array([10.0, 20.0, 40.0])
    whole = metric.combine({part: Finished(values) for part in metric.parts}, card).value
    each = [metric.combine({part: Finished(values[i : i + 1]) for part in metric.parts}, card).value for i in range(3)]
    if whole.shape != (3,) or not np.allclose(whole, np.concatenate(each)):
        raise SisError("`combine` does not treat each replicate by itself", where=where)
    for part in metric.parts:
        holed = {p: Finished(np.where(p == part, np.nan, values)) for p in metric.parts}
        if not np.isnan(metric.combine(holed, card).value).all():
            raise SisError(f"the whole is defined where {part} is not", where=where)
    return f"it combines {', '.join(metric.parts)}, replicate by replicate"


def _merging(bench: _Bench) -> Iterator[str]:
    merge, parts = bench.source.merge, bench.parts()
    whole = merge(parts)
    left = merge([merge(parts[:2]), *parts[2:]])
    right = merge([*parts[:2], merge(parts[2:])])
    bench.require(_same([whole, left, right]), "merging is not associative")
    yield "merging partials is associative"
    bench.require(_same([whole, merge(parts[::-1]), merge([*parts[3:], *parts[:3]])]), "merging depends on the order")
    yield "merging partials does not depend on their order"


def _same(partials: Sequence[Partial]) -> bool:
    first, *others = partials
    return all(
        first.image_ids == p.image_ids
        and np.array_equal(first.sample_indices, p.sample_indices)
        and all(np.array_equal(first.columns[k], p.columns[k]) for k in first.columns)
        for p in others
    )


def _weights(bench: _Bench) -> str:
    """Weights of one are the plain value, and a weight of k is a label map that occurs k times."""
    rows = bench.rows()
    own = getattr(bench.metric.module, "WEIGHTS", "repeats") == "resampling"
    weights = np.array([2, 0, 1, 1, 0, 2], float)
    both = bench.finish(rows, np.stack([np.ones(_MAPS), weights])).value
    bench.require(both.shape == (2,), f"`finish` gave {both.shape} for two rows of weights")
    plain = bool(np.isclose(both[0], bench.value(rows))) or (own and np.isnan(both[0]))
    bench.require(plain, "weights of one do not give the plain value")
    if own:
        return "weights of one give the plain value; other weights are its own way of resampling"
    copies = [(i, copy) for i, name in enumerate(rows.image_ids) for copy in range(int(weights[int(name[4:])]))]
    indices = np.array([i for i, _ in copies])
    ids = [f"{rows.image_ids[i]}-{copy}" for i, copy in copies]
    repeated = Partial(ids, rows.sample_indices[indices], {k: v[indices] for k, v in rows.columns.items()})
    again = bench.value(repeated)
    bench.require(bool(np.isclose(both[1], again)), f"weights are no repeats: {both[1]:g} and {again:g}")
    return "weights of one give the plain value, whole weights are repeated label maps"


def _range(bench: _Bench) -> str:
    low, high = bench.metric.module.RANGE
    found = bench.finish(_NOTHING if bench.needs == "meta" else bench.rows())
    values = [found.value, *found.by_class.values()]
    bench.require(not np.isnan(found.value).any(), "the value of ordinary images is undefined")
    # Rounding may leave the closed range by a little.
    inside = all(((v >= low - 1e-6) & (v <= high + 1e-6) | np.isnan(v)).all() for v in values)
    bench.require(inside, f"{found.value[0]:g} lies outside {low}..{high}")
    bench.require(bool(found.by_class) == bool(bench.metric.class_metric), "CLASS_METRIC and by_class disagree")
    return f"values lie in {low:g}..{high:g}"


def _direction(bench: _Bench) -> str:
    direction = bench.metric.module.DIRECTION
    unknown = bench.needs == "images" or (bench.needs == "features:extractor" and not bench.metric.uses_reference)
    if direction == "none" or unknown:
        return "its direction was not checked (nothing is known to be better)"
    if bench.needs == "meta":
        slow = Judge(bench.card, bench.labels, meta=_META | {"sampling_seconds": 30.0})
        worse, better = (float(bench.finish(_NOTHING, judge=j).value[0]) for j in (slow, bench.judge))
        text = "a faster run scores better"
    else:
        # quality 1: every pixel right, features of the reference, samples without anything in common
        seed = 1 if bench.metric.uses_reference else 0
        worse, better = bench.value(bench.rows(seed, 0.0)), bench.value(bench.rows(seed, 1.0))
        text = {
            "labels:segmenter": "a perfect prediction scores better than a random one",
            "features:segmenter": "features of the reference's distribution score better than shifted ones",
            "features:extractor": "features of the reference's distribution score better than shifted ones",
            "images:reference": "images with the colours of their references score better than others",
            "groups": "different samples of a label map score better than equal ones",
        }[bench.needs]
    good = better > worse if direction == "higher" else better < worse
    bench.require(good, f"DIRECTION is {direction!r}, but the better images scored {better:g} and the worse {worse:g}")
    return text


def _per_image(bench: _Bench) -> str:
    rows = bench.rows()
    values = np.asarray(vars(bench.metric.module)["per_image"](rows, bench.judge), float)
    bench.require(values.shape == (len(rows),), f"`per_image` gave {values.shape} for {len(rows)} rows")
    return "it has one value for each row"


def _nothing(bench: _Bench) -> str:
    """No rows (or, for facts, a run without a time): refused, or undefined with a reason for the table."""
    rows, judge = _NOTHING, Judge(bench.card, bench.labels, meta=_META | {"sampling_seconds": None})
    if bench.needs != "meta":
        full = bench.rows()
        rows, judge = Partial([], full.sample_indices[:0], {k: v[:0] for k, v in full.columns.items()}), bench.judge
    try:
        found = bench.finish(rows, judge=judge)
    except SisError:
        return "empty input is refused"
    bench.require(bool(np.isnan(found.value).all()), f"empty input has the value {found.value[0]:g}")
    bench.require(bool(found.note), "an undefined value has no note that says why")
    return f"empty input is undefined: {found.note}"


_NOTHING = Partial([], np.empty(0, np.int32), {})
