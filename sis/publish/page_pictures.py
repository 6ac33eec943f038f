# SPDX-License-Identifier: Apache-2.0
"""Shrinks single pictures for a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from sis.data.contact_sheet import Picture

#: Pictures with at most this many colours (label maps) are stored without loss.
FEW_COLOURS = 256


def data_uri(picture: Picture, longest: int, quality: int) -> str:
    """Encode a picture for a page: at most `longest` pixels a side; PNG if it has few colours, else JPEG."""
    image = Image.fromarray(picture)
    scale = longest / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    few = image.getcolors(FEW_COLOURS) is not None
    encoded = io.BytesIO()
    if few:
        image.save(encoded, "PNG", optimize=True)
    else:
        # Full chroma: small pictures of small objects smear otherwise. Pillow's buffer is too small to optimise that.
        image.save(encoded, "JPEG", quality=quality, subsampling=0)
    return f"data:image/{'png' if few else 'jpeg'};base64,{base64.b64encode(encoded.getvalue()).decode()}"
