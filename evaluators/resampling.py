# SPDX-License-Identifier: Apache-2.0
"""The resizing of the judges' own loaders: Pillow's filters on images and class maps, OpenCV's filter on images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]

#: Fixed-point unit of OpenCV's 8-bit bilinear weights (11 bits).
_UNIT = 2048


def next_multiple(length: int, of: int) -> int:
    """The least multiple of `of` that is not below `length` (at least 1)."""
    return (length - 1) // of * of + of


def pillow_bilinear(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize `(h, w, 3)` to `size` (height, width) with Pillow's bilinear filter, antialiased when shrinking."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def pillow_planes(planes: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Resize each plane of `(c, h, w)` to `size` by itself: Pillow's bilinear filter in mode F, antialiased."""
    if planes.shape[1:] == size:
        return planes
    resized = np.empty((len(planes), *size), np.float32)
    for plane, out in zip(planes, resized, strict=True):
        out[:] = np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized


def opencv_bilinear(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize `(h, w, 3)` to `size` (height, width) as OpenCV's INTER_LINEAR does: two taps a side, no antialiasing.

    Weights and rounding are OpenCV's fixed-point ones, so that the grey levels are equal to the last bit; halving both
    sides exactly is the mean of four pixels there, and here.
    """
    h, w = image.shape[:2]
    if (h, w) == size:
        return image
    wide = image.astype(np.int32)
    if (h, w) == (2 * size[0], 2 * size[1]):
        return ((wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2] + 2) >> 2).astype(np.uint8)
    left, right, near, far = _taps(w, size[1])
    rows = wide[:, left] * near[:, None] + wide[:, right] * far[:, None]  # an edge pixel twice: the weights sum to 1
    top, bottom, near, far = _taps(h, size[0])
    upper = (rows[top] >> 4) * near[:, None, None] >> 16
    lower = (rows[bottom] >> 4) * far[:, None, None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _taps(length: int, wanted: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """The two source places of every target place and their weights in units of 1/2048; edges are repeated."""
    at = ((np.arange(wanted) + 0.5) * (1 / (wanted / length)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    far, near = (np.rint(part * np.float32(_UNIT)).astype(np.int32) for part in (share, np.float32(1) - share))
    return first.clip(0, length - 1), (first + 1).clip(0, length - 1), near, far
