# SPDX-License-Identifier: Apache-2.0
"""How a metric is named, explained, ordered and rounded wherever it is printed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from sis.errors import SisError

SPEED = "images-per-second"

#: family -> (printed name, plain explanation); the order is the order of columns.
_FAMILIES: dict[str, tuple[str, str]] = {
    "miou": ("mIoU", "Mean intersection over union of the segmenter's labels with the label map."),
    "accuracy": ("Accuracy", "Share of pixels that the segmenter labels as the label map does."),
    "iou": ("IoU", "Intersection over union of one class."),
    "fid": ("FID", "Fréchet distance of Inception features to the real images."),
    "fd": ("FD", "Fréchet distance of features to the real images."),
    "kid": ("KID", "Kernel distance of features to the real images."),
    "precision": ("Precision", "Share of generated images near a real one."),
    "recall": ("Recall", "Share of real images near a generated one."),
    "density": ("Density", "How densely real images surround the generated ones."),
    "coverage": ("Coverage", "Share of real images with a generated neighbour."),
    "lpips": ("LPIPS", "Perceptual distance between samples of one label map: diversity."),
    "ms-ssim": ("MS-SSIM", "Structural similarity between samples of one label map: lack of diversity."),
    SPEED: ("Images/s", "Sampling throughput on the stated device; not comparable across machines."),
}

_STAND_IN = re.compile(r"^(?P<metric>[^\[]*)\[stand-in:(?P<name>[^\]]*)\]$")

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}


@dataclass(frozen=True)
class Column:
    """One printed column: a metric (or one class of it) under one protocol id.

    `key` is unique in its table; `remark` is a note that all of the column's values share.
    """

    key: str
    metric: str
    protocol_id: str
    name: str
    detail: str
    explanation: str
    unit: str
    direction: str
    stand_in: str
    remark: str
    digits: int

    @property
    def arrow(self) -> str:
        """An arrow that points where better is."""
        return ARROWS[self.direction]

    @property
    def title(self) -> str:
        """The plain-text heading: name, detail, unit, stand-in and arrow."""
        unit = f"({self.unit})" if self.unit and self.unit.lower() not in self.name.lower() else ""
        stand_in = f"[stand-in: {self.stand_in}]" if self.stand_in else ""
        return " ".join(part for part in (self.name, self.detail, unit, stand_in, self.arrow) if part)


def metric_column(rows: pd.DataFrame, shared: bool = False) -> Column:
    """Describe the column of one metric from its overall rows; raises SisError when they disagree.

    shared: another column of the table has the same metric under another protocol id, so the id is printed too.
    """
    metric = _only(rows, "metric", "metric")
    protocol_id = _only(rows, "protocol_id", metric)
    base, stand_in = split_stand_in(metric)
    named = sorted({str(s) for s in rows["stand_in"]} | ({stand_in} if stand_in else set()))
    if len(named) != 1:
        raise SisError(
            f"column {metric!r} mixes scores with and without a stand-in: {named}",
            fix="evaluate these runs again with the same weights",
        )
    family = _family(base)
    name, explanation = _FAMILIES.get(family, (base, ""))
    detail = base[len(family) :].strip("-")
    return Column(
        key=f"{metric}@{protocol_id}" if shared else metric,
        metric=metric,
        protocol_id=protocol_id,
        name=name,
        detail=f"{detail} @{protocol_id[:6]}".strip() if shared else detail,
        explanation=explanation,
        unit=_only(rows, "unit", metric),
        direction=_direction(rows, metric),
        stand_in=named[0],
        remark=_remark(rows),
        digits=decimal_places(rows),
    )


def class_column(class_name: str, rows: pd.DataFrame, digits: int) -> Column:
    """Describe the column of one class of the per-class IoU table."""
    return Column(
        key=class_name,
        metric=_only(rows, "metric", class_name),
        protocol_id=_only(rows, "protocol_id", class_name),
        name=class_name,
        detail="",
        explanation=f"Intersection over union of class {class_name}.",
        unit=_only(rows, "unit", class_name),
        direction=_direction(rows, class_name),
        stand_in=_only(rows, "stand_in", class_name),
        remark=_remark(rows),
        digits=digits,
    )


def split_stand_in(metric: str) -> tuple[str, str]:
    """Split "lpips-alex[stand-in:x]" into ("lpips-alex", "x"); a plain name gives an empty stand-in."""
    match = _STAND_IN.match(metric)
    return (match["metric"], match["name"]) if match else (metric, "")


def metric_order(metric: str) -> tuple[int, str]:
    """Sort key of columns: agreement with the label map, realism, diversity, speed, then the unknown by name."""
    families = list(_FAMILIES)
    family = _family(split_stand_in(metric)[0])
    return (families.index(family) if family in families else len(families), metric)


def decimal_places(rows: pd.DataFrame) -> int:
    """Choose the decimals that the intervals justify: two significant digits of the median half width."""
    numbers = rows[["value", "low", "high"]].to_numpy(dtype=float)
    half_widths = sorted(w for w in ((numbers[:, 2] - numbers[:, 1]) / 2).tolist() if math.isfinite(w) and w > 0)
    if half_widths:
        scale = half_widths[len(half_widths) // 2]
        return min(max(1 - math.floor(math.log10(scale)), 0), 4)
    sizes = sorted(abs(v) for v in numbers[:, 0].tolist() if math.isfinite(v) and v)
    if not sizes:
        return 1
    # Without intervals: three significant digits of the median value.
    return min(max(2 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 4)


def format_number(value: float | None, digits: int) -> str:
    """Print with fixed decimals; None prints as a dash and minus zero as zero."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def format_signed(value: float | None, digits: int) -> str:
    """Print a difference: with its sign, zero without."""
    if value is None:
        return "–"
    text = format_number(value, digits)
    return text if text.startswith("-") or float(text) == 0 else "+" + text


def _family(base: str) -> str:
    known = [f for f in _FAMILIES if base == f or base.startswith(f + "-")]
    return max(known, key=len, default=base)


def _values(rows: pd.DataFrame, column: str) -> list[str]:
    return sorted({str(v) for v in rows[column]})


def _remark(rows: pd.DataFrame) -> str:
    notes = {str(note) for note in rows.loc[rows["value"].notna(), "note"]}
    return notes.pop() if len(notes) == 1 else ""


def _only(rows: pd.DataFrame, column: str, key: str) -> str:
    values: Sequence[str] = _values(rows, column)
    if len(values) != 1:
        raise SisError(
            f"scores of {key!r} disagree about {column}: {', '.join(map(repr, values))}",
            fix="evaluate these runs again with one version of the metric",
        )
    return values[0]


def _direction(rows: pd.DataFrame, key: str) -> str:
    direction = _only(rows, "direction", key)
    if direction not in ARROWS:
        raise SisError(f"unknown direction {direction!r}", where=key, fix="use higher, lower or none")
    return direction
