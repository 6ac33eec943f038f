# SPDX-License-Identifier: Apache-2.0
"""How images come to the size that a feature network wants: each way is another metric, so each has a name.

On a noisy picture the ways differ by several grey levels of 255, and Fréchet distances by more than published methods
do (Parmar, Zhang and Zhu 2022, "On Aliased Resizing"). All return float32 in 0..255 before any rounding.

    pytorch-fid  bilinear between pixel centres, never smoothed when shrinking (github.com/mseitzer/pytorch-fid)
    tf1          bilinear of TensorFlow 1, source = target * in/out without the half pixel (torch-fidelity)
    clean        bicubic (a = -1/2) of Pillow on floats, smoothed when shrinking, clipped to 0..255 (clean-fid)
    sdm-256      before any of them: scikit-image's resize to 256x256 whatever the shape (SDM's tests_with_FID.py)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

#: Ways to the network's size, and what may come before.
RESIZERS = ("pytorch-fid", "tf1", "clean")
BEFORE = ("sdm-256",)
#: Side of SDM's squares, in pixels.
_SQUARE = 256


def resize(images: NDArray[np.uint8], way: str, side: int, device: str = "cpu", before: str | None = None) -> Tensor:
    """Bring images to `side x side` in one of the RESIZERS' ways.

    Args:
        images: uint8 RGB `(b, h, w, 3)`; they go to the device as bytes, except where Pillow or scikit-image resize.
        way: one of RESIZERS.
        side: pixels of both sides.
        device: where the result lies.
        before: one of BEFORE, or None.

    Returns:
        float32 `(b, 3, side, side)` in 0..255.
    """
    x: NDArray = images if before is None else squash(images)
    if way == "clean":
        return torch.from_numpy(_clean(x, side)).to(device).permute(0, 3, 1, 2)
    planes = torch.from_numpy(np.array(x)).to(device).permute(0, 3, 1, 2).float()
    if way == "tf1":
        return _tf1(planes, side)
    # in 0..1 as pytorch-fid does, for the same rounding
    return 255 * F.interpolate(planes / 255, (side, side), mode="bilinear", align_corners=False)


def squash(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """SDM's first step: `(b, h, w, 3)` to float32 `(b, 256, 256, 3)` in 0..255, smoothed when shrinking."""
    from skimage.transform import resize as skimage_resize

    out = np.empty((len(images), _SQUARE, _SQUARE, 3), np.float32)
    for image, target in zip(images, out, strict=True):
        target[:] = skimage_resize(image.astype(np.float32), target.shape)
    return out


def _clean(images: NDArray, side: int) -> NDArray[np.float32]:
    """Each channel of each image by Pillow, `(b, h, w, 3)` to `(b, side, side, 3)`."""
    out = np.empty((len(images), side, side, 3), np.float32)
    for image, target in zip(images, out, strict=True):
        for c in range(3):
            plane = Image.fromarray(image[..., c].astype(np.float32))
            target[..., c] = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
    return out.clip(0, 255, out=out)


def _tf1(planes: Tensor, side: int) -> Tensor:
    """Rows, then columns, each a mixture of two neighbours."""
    for axis in (2, 3):
        size = planes.shape[axis]
        place = torch.arange(side, dtype=torch.float32, device=planes.device) * (size / side)
        low = place.floor()
        share = (place - low).reshape((side, 1) if axis == 2 else (side,))
        first, second = (i.long().clamp(max=size - 1) for i in (low, low + 1))
        one, two = planes.index_select(axis, first), planes.index_select(axis, second)
        planes = one + (two - one) * share
    return planes
