# SPDX-License-Identifier: Apache-2.0
"""OpenCV's CIELAB for 8-bit pictures, there and back, rounding included, without OpenCV.

L is stored as L * 255/100, a and b as a + 128 and b + 128 (D65). Both directions work in whole numbers on tables; the
formulas and the binary places are those of OpenCV 4 and 5 (`color_lab.cpp`), whose answers these are for all 16.7
million colours.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Table = NDArray[np.int64]

#: Linear sRGB to XYZ and back, and the white point (D65).
XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
RGB_OF_XYZ = np.array(
    [[3.240479, -1.53715, -0.498535], [-0.969256, 1.875991, 0.041556], [0.055648, -0.204043, 1.057311]]
)
WHITE = np.array([0.950456, 1.0, 1.088754])
#: CIELAB is linear for the darkest shares of white: f(t) = 841/108 t + 16/116 below (6/29)^3.
SLOPE, OFFSET, DARK = 841 / 108, 16 / 116, 216 / 24389

#: f and its cube in the way back have 14 binary places.
_ONE = 1 << 14
#: The smallest value of f that 8-bit L, a and b can speak of, in those places.
_LOWEST = -8145


def lab8_of_rgb(picture: Picture) -> Picture:
    """8-bit CIELAB `(..., 3)` of sRGB uint8 `(..., 3)`."""
    light, root, mix = _there()
    xyz = (light[picture.astype(np.intp)] @ mix.T + (1 << 11)) >> 12
    x, y, z = np.moveaxis(root[xyz], -1, 0)
    lightness = 296 * y - 1336934  # 116 and -16 of the definition, times 255/100, the latter in 15 binary places
    channels = np.stack([lightness, 500 * (x - y) + (128 << 15), 200 * (y - z) + (128 << 15)], -1)
    return np.clip((channels + (1 << 14)) >> 15, 0, 255).astype(np.uint8)


def rgb_of_lab8(lab: Picture) -> Picture:
    """sRGB uint8 `(..., 3)` of 8-bit CIELAB `(..., 3)`; what lies outside sRGB is clipped channel by channel."""
    root, share, cube, level, mix = _back()
    lightness, a, b = (lab[..., i].astype(np.int64) for i in range(3))
    # 1/500 and 1/200 in 14 places, by multiplication and shift; minus the stored 128.
    aside = ((5 * a * 53687 + (1 << 7)) >> 13) - 128 * _ONE // 500
    below = ((b * 41943 + (1 << 4)) >> 9) - 128 * _ONE // 200 + 1
    f = root[lightness]
    xyz = np.stack([cube[f + aside - _LOWEST], share[lightness], cube[f - below - _LOWEST]], -1)
    linear = (xyz @ mix.T + (1 << 13)) >> 14
    return level[np.clip(linear, 0, len(level) - 1)].astype(np.uint8)


def linear_of_srgb(level: NDArray) -> NDArray:
    """Linear light of sRGB levels, both in 0..1."""
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def srgb_of_linear(light: NDArray) -> NDArray:
    """sRGB levels of linear light at or above 0, both about 0..1."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@cache
def _there() -> tuple[Table, Table, Table]:
    """Linear light (3 binary places of 255), CIELAB's root of a share of white (15 places), RGB to XYZ (12 places)."""
    share = np.arange(256 * 3 // 2 * 8, dtype=np.float32) / np.float32(255 * 8)  # single precision decides two entries
    root = np.where(share < DARK, share * np.float32(SLOPE) + np.float32(OFFSET), np.cbrt(share))
    mix = XYZ_OF_RGB / WHITE[:, None] * (1 << 12)
    tables = (linear_of_srgb(np.arange(256) / 255) * 255 * 8, root * np.float32(1 << 15), mix)
    light, roots, mixed = (np.rint(table).astype(np.int64) for table in tables)
    return light, roots, mixed


@cache
def _back() -> tuple[Table, Table, Table, Table, Table]:
    """By L: f and share of white (14 places); by f: share of white; by linear light (12 places): level; XYZ to RGB."""
    stored = np.arange(256)
    f = _ONE * (OFFSET + stored * 5 / (3 * 17 * 29))  # (L + 16) / 116 with L = 100/255 of what is stored
    dark = _ONE * stored * (20 * 9) / (17 * 29**3)
    share = np.where(stored <= 20, dark, f**3 / _ONE**2)
    roots = np.arange(_LOWEST, _ONE * 9 // 4 + _LOWEST)
    # Whole numbers are divided towards zero, as in C.
    linear = np.sign(roots) * (abs(roots) * 108 // 841) - _ONE * 16 // 116 * 108 // 841
    cube = np.where(roots <= 3390, linear, roots * roots // _ONE * roots // _ONE)
    level = 255 * srgb_of_linear(np.arange(1 << 12) / (1 << 12))
    root, whole, levels, mix = (np.rint(t).astype(np.int64) for t in (f, share, level, RGB_OF_XYZ * WHITE * (1 << 12)))
    return root, whole, cube, levels, mix
