# SPDX-License-Identifier: Apache-2.0
"""The channel order of one-hot label maps in the different families of published code: explicit, never implied.

Here, and in SPADE, its forks, SDM and IIDM, channels are the ids and unlabelled pixels are the last channel.
Weights of another family see their own order only through `family_channels`.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sis.data.labels import LabelSpace
from sis.errors import SisError, did_you_mean

Layout = Literal["unknown_last", "unknown_first", "background_last"]

#: Which family of published code uses which order (research of its loaders; docs/datasets.md).
FAMILIES: dict[str, Layout] = {
    "spade": "unknown_last",
    "sdm": "unknown_last",
    "iidm": "unknown_last",
    "oasis": "unknown_first",
    # Cityscapes' own id 0 is its "unlabeled", so OASIS takes the ids as they are; channel 34 never occurs.
    "oasis_cityscapes": "unknown_last",
    "scgan_celeba": "background_last",
}


def family_channels(space: LabelSpace, layout: str) -> NDArray[np.uint8]:
    """For each of our channels the channel of the family's layout, uint8 `(width,)`.

    unknown_last: ids, then unlabelled. unknown_first: unlabelled, then ids. background_last: ids 1, 2, ..., then id 0.
    Raises SisError for unknown layouts, and for unknown_first of a table without unlabelled pixels.
    """
    ours = np.arange(space.width, dtype=np.uint8)
    if layout == "unknown_last":
        return ours
    if layout == "unknown_first":
        if space.void is None:
            raise SisError(f"label table {space.name!r} has no unlabelled pixels, layout {layout} needs them")
        return np.roll(ours, -1)
    if layout == "background_last":
        return np.where(ours < space.count, (ours.astype(int) - 1) % space.count, ours).astype(np.uint8)
    raise SisError(f"unknown one-hot layout {layout!r}", fix=did_you_mean(layout, get_args(Layout)))
