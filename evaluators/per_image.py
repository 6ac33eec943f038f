# SPDX-License-Identifier: Apache-2.0
"""What a metric says of single images, where that means anything: for galleries, win rates and tables of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evaluators.definition import Facts, called, stand_in_of
from evaluators.discovery import MetricFile, find_metric
from evaluators.frechet import Array, Target
from evaluators.frechet_interval import derivatives
from evaluators.metric import Judge
from evaluators.neighbours import squared_distances, squared_radii
from evaluators.partial import Partial
from evaluators.score import Measured
from sis.config.protocols import Entry, ProtocolCard
from sis.data.tables import write_table

#: One value. `sample_index` is null where a value belongs to all samples of a label map; `value` where it is undefined.
PER_IMAGE = pa.schema(
    [
        ("image_id", pa.string()),
        ("sample_index", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)

#: A function from a metric's rows to one value a row, float64 `(n,)`; NaN = undefined.
PerImage = Callable[[Partial, Judge], Array]


def per_image(metric: MetricFile, rows: Partial, judge: Judge) -> Array | None:
    """The metric's value for each row, float64 `(n,)`, NaN = undefined; None where it has none for single images.

    A metric's file may state `per_image(rows, judge)` itself, and is then asked.
    """
    own: PerImage | None = getattr(metric.module, "per_image", None)
    known = (_OF | _WITHIN).get(metric.stem)
    function = own or (known.function if known else None)
    return None if function is None or not len(rows) else np.asarray(function(rows, judge), np.float64)


def comparable(metric: MetricFile) -> bool:
    """Whether the values of two sets can be compared image by image; contributions to a set's own score cannot."""
    return hasattr(metric.module, "per_image") or metric.stem in _OF


def meaning(metric: MetricFile) -> str:
    """What the value of an image is, in words; "" where the metric's own file defines it."""
    known = (_OF | _WITHIN).get(metric.stem)
    return "" if known is None or hasattr(metric.module, "per_image") else known.words


def has_per_image(metric: MetricFile) -> bool:
    """Whether single images have a value."""
    return comparable(metric) or metric.stem in _WITHIN


def of_maps(rows: Partial, values: Array) -> Array:
    """Mean over the rows of each label map, `(m,)` in the order of `rows.maps`; NaN where no row has a value."""
    place, defined = rows.by_map(), ~np.isnan(values)
    count = np.bincount(place[defined], minlength=len(rows.maps))
    total = np.bincount(place[defined], values[defined], minlength=len(rows.maps))
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def judge_of(metric: MetricFile, card: ProtocolCard, measured: Measured, real: Measured | None) -> Judge:
    """What a metric may ask when it looks at the rows of `measured`."""
    reference = real.load(metric, card) if real and metric.uses_reference else None
    return Judge(card, measured.labels, None, reference, measured.meta)


def name_of(entry: Entry, facts: Facts) -> str:
    """What a metric is called in tables: a stand-in's number carries the stand-in's name."""
    stand_in = stand_in_of(find_metric(entry.stem), entry.card, facts)
    return called(entry) + (f"[stand-in:{stand_in}]" if stand_in else "")


def values_of(entry: Entry, measured: Measured, real: Measured | None = None) -> tuple[Partial, Array] | None:
    """The rows of a metric and the value of each; None where it has none, or too few samples were measured."""
    metric = find_metric(entry.stem)
    rows = measured.load(metric, entry.card) if has_per_image(metric) else None
    if rows is None:
        return None
    values = per_image(metric, rows, judge_of(metric, entry.card, measured, real))
    return None if values is None else (rows, values)


def table_of(entry: Entry, measured: Measured, real: Measured | None = None) -> pa.Table | None:
    """The values of a metric as a tidy table of the schema PER_IMAGE; None where there are none."""
    found = values_of(entry, measured, real)
    if found is None:
        return None
    rows, values = found
    whole = find_metric(entry.stem).module.NEEDS == "groups"
    columns = [
        pa.array(rows.image_ids, pa.string()),
        pa.nulls(len(rows), pa.int32()) if whole else pa.array(rows.sample_indices, pa.int32()),
        pa.array([name_of(entry, measured.facts)] * len(rows), pa.string()),
        pa.array(values, pa.float64(), from_pandas=True),
    ]
    return pa.Table.from_arrays(columns, schema=PER_IMAGE)


def write_tables(tables: list[pa.Table], path: Path, facts: dict) -> None:
    """Write tables of several metrics as one Parquet file; `facts` (JSON) go to its footer."""
    write_table(pa.concat_tables([PER_IMAGE.empty_table(), *tables]), path, PER_IMAGE, facts)


def pixel_accuracy(rows: Partial, judge: Judge) -> Array:
    """Share of an image's labelled pixels that the segmenter answers right, in %."""
    n = rows.columns["confusion"]
    pixels, hit = n.sum((1, 2), dtype=np.float64), np.einsum("ncc->n", n, dtype=np.float64)
    return 100 * np.divide(hit, pixels, out=np.full(len(n), np.nan), where=pixels > 0)


def mean_iou(rows: Partial, judge: Judge) -> Array:
    """Mean IoU over the classes of an image's label map, in %, whatever class rule the protocol has.

    A class that the segmenter sees and nobody asked for counts through the pixels that it takes from the others. The
    mean of these values is not the metric `miou`, which adds up the pixels of all images first.
    """
    n = rows.columns["confusion"]
    hit, truth = np.einsum("ncc->nc", n).astype(np.float64), n.sum(2, dtype=np.float64)
    union = truth + n.sum(1) - hit
    iou = np.divide(hit, union, out=np.zeros_like(hit), where=truth > 0)
    count = (truth > 0).sum(1)
    return 100 * np.divide(iou.sum(1), count, out=np.full(len(n), np.nan), where=count > 0)


def mean_of_pairs(rows: Partial, judge: Judge) -> Array:
    """Mean over the pairs of samples of a label map."""
    return rows.columns["pairs"].astype(np.float64).mean(1)


def percent(rows: Partial, judge: Judge) -> Array:
    """The image's own score, of metrics that are means over images."""
    return rows.columns["percent"].astype(np.float64)


def balls_entered(rows: Partial, judge: Judge) -> Array:
    """In how many balls about real images an image lies, as a share of k (density's); NaN without reference."""
    from evaluators.metrics.density import NEIGHBOURS

    inside = _inside(rows, judge, NEIGHBOURS, edge=False)
    return np.full(len(rows), np.nan) if inside is None else inside / NEIGHBOURS


def among_real(rows: Partial, judge: Judge) -> Array:
    """1 where an image lies in the ball about any real image (precision's), else 0; NaN without reference."""
    from evaluators.metrics.precision import NEIGHBOURS

    inside = _inside(rows, judge, NEIGHBOURS, edge=True)
    return np.full(len(rows), np.nan) if inside is None else (inside > 0).astype(np.float64)


def _inside(rows: Partial, judge: Judge, k: int, edge: bool) -> Array | None:
    """Number of balls about real images, which reach to their k-th neighbour, that each row lies in."""
    if judge.reference is None or len(judge.reference) <= k:
        return None
    real, count = judge.reference.columns["features"], np.empty(len(rows))
    radii = squared_radii(real, k)
    for place, squares in squared_distances(rows.columns["features"], real):
        count[place] = ((squares <= radii) if edge else (squares < radii)).sum(1)
    return count


def frechet_contribution(rows: Partial, judge: Judge) -> Array:
    """By how much the distance grows, to first order, when an image's weight does; NaN without reference.

    See evaluators/frechet_interval.py. Low values pull the set towards the real images.
    """
    if judge.reference is None or min(len(rows), len(judge.reference)) < 2:
        return np.full(len(rows), np.nan)
    return derivatives(rows.columns["features"], Target.of(judge.reference.columns["features"]))


class _Known(NamedTuple):
    function: PerImage
    words: str


_IOU = _Known(mean_iou, "mean IoU over the classes of its label map")
_ACCURACY = _Known(pixel_accuracy, "share of its labelled pixels that the segmenter answers right")
_PAIRS = _Known(mean_of_pairs, "mean over the pairs of samples of a label map")
_SHARE = _Known(frechet_contribution, "by how much the distance grows with its weight; below 0 it pulls the set closer")
_OF = {
    "miou": _IOU,
    "accuracy": _ACCURACY,
    "lpips": _PAIRS,
    "lpips_sdm": _PAIRS,
    "ms_ssim": _PAIRS,
    "mask_accuracy": _Known(percent, "share of all its pixels that the segmenter answers right"),
    "style": _Known(percent, "correlation of its colour histogram with that of its style reference"),
    "aesthetic": _Known(percent, "rating that a network expects people to give it"),
    "density": _Known(balls_entered, "number of balls about real images that it lies in, as a share of k"),
    "precision": _Known(among_real, "1 where it lies in the ball about any real image, else 0"),
}
#: Values that say what an image does to its own set's score, and nothing beside another set's.
_WITHIN = {"fd": _SHARE, "fid": _SHARE}
