# SPDX-License-Identifier: Apache-2.0
"""Brings images to the size at which a published segmenter is shown them, with Pillow's filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sis.config.judges import FeedCard

_KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def fed(images: NDArray[np.uint8], feed: FeedCard, labels: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize images uint8 `(b, h, w, 3)` as a preset says; `labels` is the (height, width) of their label maps."""
    if feed.size == "image":
        return images
    height, width = labels if feed.size == "label" else feed.size
    if images.shape[1:3] == (height, width):
        return images
    kernel = _KERNELS[feed.kernel]
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), kernel)) for image in images])
