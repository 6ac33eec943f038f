# SPDX-License-Identifier: Apache-2.0
"""Pictures between two rounds of refinement, as IIDM's released code keeps them: whole levels, perhaps in JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sis.errors import SisError, first_of

#: Pillow's default, with which the released code writes every picture.
QUALITY = 75


def truncated(x: Tensor, image_ids: Sequence[str]) -> Tensor:
    """Map [-1, 1] to uint8, clipped, decimals dropped (`sis.diffusion.pixels.to_uint8` rounds to nearest).

    Raises SisError naming images that are not finite.
    """
    good = torch.isfinite(x).flatten(1).all(1).tolist()
    if not all(good):
        bad = [i for i, fine in zip(image_ids, good, strict=True) if not fine]
        raise SisError(f"decoded images are not finite: {first_of(dict.fromkeys(bad))}", fix="check the models")
    return (255 * ((x + 1) / 2)).clamp(0, 255).to(torch.uint8)


def through_jpeg(images: Tensor, quality: int = QUALITY) -> Tensor:
    """What is left of uint8 images `(b, 3, h, w)` after they were written as JPEG and read again."""
    return torch.stack([_reread(image, quality) for image in images])


def _reread(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "JPEG", quality=quality)
    pixels = np.array(Image.open(buffer))
    return torch.from_numpy(pixels).permute(2, 0, 1).to(image.device)
