# SPDX-License-Identifier: Apache-2.0
"""Colour transfer: give a picture the means and deviations of another one's CIELAB channels (IIDM, Eq. 6).

After Reinhard et al. 2001, who work in another colour space. IIDM's released code works on 8-bit CIELAB with means and
deviations rounded to two decimals, which is `reinhard_lab8`; `reinhard_lab` is the same without the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.data.lab8 import (
    DARK,
    OFFSET,
    RGB_OF_XYZ,
    SLOPE,
    WHITE,
    XYZ_OF_RGB,
    lab8_of_rgb,
    linear_of_srgb,
    rgb_of_lab8,
    srgb_of_linear,
)
from sis.errors import SisError, did_you_mean

Picture = NDArray[np.uint8]


def reinhard_lab8(source: Picture, reference: Picture) -> Picture:
    """The source's picture in the reference's colours, as IIDM's released code does it, to the bit.

    A channel of the source whose deviation rounds to 0.00 has nothing to be stretched and is shifted only (the
    released code divides by zero there).

    Args:
        source: sRGB uint8 `(h, w, 3)`.
        reference: sRGB uint8 `(h', w', 3)`; its size may differ.

    Returns:
        sRGB uint8 `(h, w, 3)`.
    """
    ours, theirs = lab8_of_rgb(source), lab8_of_rgb(reference)
    mean, deviation = (np.around(value, 2) for value in lab8_statistics(ours))
    wanted_mean, wanted_deviation = (np.around(value, 2) for value in lab8_statistics(theirs))
    ratio = _ratio(wanted_deviation, deviation).astype(np.float32)
    shifted = (ours.astype(np.float32) - mean.astype(np.float32)) * ratio + wanted_mean.astype(np.float32)
    return rgb_of_lab8(np.clip(np.rint(shifted), 0, 255).astype(np.uint8))


def lab8_statistics(lab: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation `(3,)` of each channel of whole numbers `(h, w, 3)`."""
    values = lab.reshape(-1, 3).astype(np.float64)
    # Sums, exact for whole numbers, times a reciprocal as in OpenCV: a quotient may round to another second decimal.
    share = 1 / len(values)
    mean = values.sum(0) * share
    variance = (values * values).sum(0) * share - mean * mean
    return mean, np.sqrt(np.maximum(variance, 0.0))


def reinhard_lab(source: Picture, reference: Picture) -> Picture:
    """As `reinhard_lab8` in floating point: nothing is rounded or clipped before the final levels."""
    ours, theirs = lab_of_rgb(source), lab_of_rgb(reference)
    axes = (0, 1)
    ratio = _ratio(theirs.std(axes), ours.std(axes))
    return rgb_of_lab((ours - ours.mean(axes)) * ratio + theirs.mean(axes))


def _ratio(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient of deviations, 1 where a channel is constant."""
    flat = found <= 1e-9
    return np.where(flat, 1.0, wanted / np.where(flat, 1.0, found))


def lab_of_rgb(picture: Picture) -> NDArray[np.float64]:
    """CIELAB `(..., 3)` (D65; L in 0..100) of sRGB uint8 `(..., 3)`."""
    share = linear_of_srgb(picture / 255) @ (XYZ_OF_RGB / WHITE[:, None]).T
    f = np.where(share > DARK, np.cbrt(share), SLOPE * share + OFFSET)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def rgb_of_lab(lab: NDArray[np.float64]) -> Picture:
    """sRGB uint8 `(..., 3)` of CIELAB `(..., 3)`, rounded; what lies outside sRGB is clipped channel by channel."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    share = np.where(f > 6 / 29, f**3, (f - OFFSET) / SLOPE)
    light = np.clip((share * WHITE) @ RGB_OF_XYZ.T, 0, 1)
    return np.rint(255 * srgb_of_linear(light)).astype(np.uint8)


#: Ways to transfer colours, by name: (source, reference) -> picture.
TRANSFERS: Mapping[str, Callable[[Picture, Picture], Picture]] = {
    "reinhard_lab8": reinhard_lab8,
    "reinhard_lab": reinhard_lab,
}


def transferred(name: str, images: Tensor, references: Tensor) -> Tensor:
    """Each image in its reference's colours; uint8 `(b, 3, h, w)` and `(b, 3, h', w')` to `(b, 3, h, w)`.

    Raises SisError for an unknown way.
    """
    if name not in TRANSFERS:
        raise SisError(f"no colour transfer {name!r}", fix=did_you_mean(name, list(TRANSFERS)))
    sources, wanted = (batch.permute(0, 2, 3, 1).cpu().numpy() for batch in (images, references))
    pictures = [TRANSFERS[name](s, w) for s, w in zip(sources, wanted, strict=True)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(images.device)
