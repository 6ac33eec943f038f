# SPDX-License-Identifier: Apache-2.0
"""Likeness in colour of two pictures: ten definitions of a histogram correlation, which is all that IIDM says of it.

The colour spaces are OpenCV's for 8-bit pictures, rounding included, so that numbers computed with OpenCV come out the
same without it. Which definition the contest behind IIDM used is unknown; `hue180` agrees best with its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sis.data.lab8 import lab8_of_rgb
from sis.errors import SisError, did_you_mean

Picture = NDArray[np.uint8]
#: A picture's histograms; their correlations are averaged.
Definition = Callable[[Picture], list[NDArray[np.float64]]]

#: Hue cells of `hsv72`, in degrees, upper bounds included; what lies above belongs to the first cell.
_HUE_BOUNDS = (20, 40, 75, 155, 190, 270, 295, 315)
#: Saturation and value cells of `hsv72`, upper bounds included.
_THIRDS = (51, 178)


def similarity(definition: str, one: Picture, other: Picture) -> float:
    """Correlation of the colour histograms of two pictures `(h, w, 3)`: -1..1, 1 where a histogram is constant.

    `rgb_joint_8` and `rgb_joint_16` have other bounds, and no value (NaN) for some pictures: see `_correlation`.

    Raises SisError for an unknown definition.
    """
    found = [_correlation(a, b) for a, b in zip(*(of(definition)(p) for p in (one, other)), strict=True)]
    return float(np.mean(found))


def of(definition: str) -> Definition:
    """The definition of this name. Raises SisError with the nearest for an unknown one."""
    if definition not in DEFINITIONS:
        raise SisError(f"unknown colour histogram {definition!r}", fix=did_you_mean(definition, list(DEFINITIONS)))
    return DEFINITIONS[definition]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's correlation over bins, in the form of OpenCV's HISTCMP_CORREL.

    OpenCV's Python interface takes the last axis of a three-dimensional histogram for channels and divides by the
    number of the others' bins alone. Scores computed with it carry that, so it is kept: such a value is no correlation
    proper, and it is NaN where the root's argument is negative.
    """
    count = a.size if a.ndim < 3 else a.size // a.shape[-1]
    product = (a * b).sum() - a.sum() * b.sum() / count
    squares = [(h * h).sum() - h.sum() ** 2 / count for h in (a, b)]
    below = squares[0] * squares[1]
    if abs(below) <= np.finfo(np.float64).eps:
        return 1.0
    return float(product / np.sqrt(below)) if below > 0 else float("nan")


def hsv(picture: Picture) -> Picture:
    """OpenCV's 8-bit HSV of RGB `(..., 3)`: hue in 0..179 (two degrees each), saturation and value in 0..255."""
    red, green, blue = (picture[..., i].astype(np.int64) for i in range(3))
    value = picture.max(-1).astype(np.int64)
    spread = value - picture.min(-1)
    saturation = (spread * _reciprocals(255)[value] + (1 << 11)) >> 12
    sector = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (sector * _reciprocals(30)[spread] + (1 << 11)) >> 12
    return np.stack([np.where(hue < 0, hue + 180, hue), saturation, value], -1).astype(np.uint8)


@cache
def _reciprocals(scale: int) -> NDArray[np.int64]:
    """`scale / i` in 12 binary places for i = 0..255, 0 for 0."""
    return np.array([0, *np.rint((scale << 12) / np.arange(1, 256))], np.int64)


def grey(picture: Picture) -> Picture:
    """OpenCV's 8-bit grey level of RGB `(..., 3)`: `(...)`."""
    weighted = picture.astype(np.int64) @ np.array([9798, 19235, 3735])  # 0.299, 0.587, 0.114 in 15 binary places
    return ((weighted + (1 << 14)) >> 15).astype(np.uint8)


def _counts(values: NDArray, bins: int, top: int = 256) -> NDArray[np.float64]:
    """Histogram of whole numbers over [0, top)."""
    cells = np.floor(values.ravel() * (bins / top)).astype(np.intp)
    return np.bincount(cells, minlength=bins).astype(np.float64)


def _channels(picture: Picture, top: tuple[int, int, int] = (256, 256, 256)) -> list[NDArray[np.float64]]:
    """One histogram a channel, one bin a level."""
    return [_counts(picture[..., i], top[i], top[i]) for i in range(3)]


def _joint(picture: Picture, bins: int) -> NDArray[np.float64]:
    """Joint histogram of the three channels `(bins, bins, bins)`."""
    r, g, b = (picture[..., i].astype(np.intp) * bins // 256 for i in range(3))
    return _counts((r * bins + g) * bins + b, bins**3, bins**3).reshape(bins, bins, bins)


def _hue_saturation(picture: Picture, hues: int = 50, saturations: int = 60) -> NDArray[np.float64]:
    """Joint histogram of hue and saturation `(hues, saturations)`."""
    h, s, _ = np.moveaxis(hsv(picture).astype(np.intp), -1, 0)
    cells = np.floor(h * (hues / 180)).astype(np.intp) * saturations + np.floor(s * (saturations / 256)).astype(np.intp)
    return _counts(cells, hues * saturations, hues * saturations).reshape(hues, saturations)


def _cells(picture: Picture) -> NDArray[np.float64]:
    """8 hue, 3 saturation and 3 value cells; the last one of all 72 does not count, as in the entrants' script."""
    h, s, v = np.moveaxis(hsv(picture).astype(np.intp), -1, 0)
    hue = np.searchsorted(_HUE_BOUNDS, 2 * h, side="left") % len(_HUE_BOUNDS)
    cell = 9 * hue + 3 * np.searchsorted(_THIRDS, s, side="left") + np.searchsorted(_THIRDS, v, side="left")
    counts = _counts(cell[cell < 71], 71, 71)
    return np.append(counts, 0.0)


DEFINITIONS: Mapping[str, Definition] = {
    "hue180": lambda p: [_counts(hsv(p)[..., 0], 180, 180)],
    "hsv_channel_mean": lambda p: _channels(hsv(p), (180, 256, 256)),
    "hsv72": lambda p: [_cells(p)],
    "hs_50x60": lambda p: [_hue_saturation(p)],
    "rgb_channel_mean_256": _channels,
    "rgb_concat_256": lambda p: [np.concatenate(_channels(p))],
    "rgb_joint_8": lambda p: [_joint(p, 8)],
    "rgb_joint_16": lambda p: [_joint(p, 16)],
    "lab_channel_mean_256": lambda p: _channels(lab8_of_rgb(p)),
    "gray256": lambda p: [_counts(grey(p), 256)],
}
