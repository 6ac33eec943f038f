# SPDX-License-Identifier: Apache-2.0
"""The resizing that the papers' loaders use, each filter under its own name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]


def halvings(size: Size, target: int) -> int:
    """How often a picture of `size` is halved while its short side is at least twice `target`."""
    count, short = 0, min(size)
    while short >= 2 * target:
        count, short = count + 1, short // 2
    return count


def halve(image: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Halve `(h, w, 3)` so many times with the box filter; an odd last row or column is squeezed in."""
    for _ in range(times):
        picture = Image.fromarray(image)
        image = np.asarray(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX))
    return image


def bicubic(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize `(h, w, 3)` to `size` (height, width) with Pillow's antialiased bicubic filter."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def nearest(labels: NDArray, size: Size) -> NDArray:
    """Resize ids, uint8 or uint16 `(h, w)`, to `size` (height, width); samples the centres of the cells (Pillow)."""
    if labels.shape == size:
        return labels
    wide = labels if labels.dtype == np.uint8 else labels.astype(np.int32)
    resized = Image.fromarray(wide).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(labels.dtype)


def bilinear(values: NDArray, size: Size) -> NDArray[np.float32]:
    """Resize `(h, w)` or `(h, w, c)` in float32 to `size` with the antialiased bilinear filter of torch."""
    import torch
    from torch.nn import functional as F

    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(values), np.float32)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).reshape(*size, *values.shape[2:]).numpy()


def rounded(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to whole grey levels 0..255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
