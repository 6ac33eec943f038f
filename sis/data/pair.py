# SPDX-License-Identifier: Apache-2.0
"""One label map with its photograph, from the raw files to the methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sis.errors import SisError


@dataclass(frozen=True)
class Origin:
    """What a raw photograph was before any preparation: size in pixels, Pillow mode, hash of its RGB pixels."""

    width: int
    height: int
    mode: str
    sha256: str


@dataclass(frozen=True)
class Pair:
    """A label map and its photograph.

    photograph: uint8 `(h, w, 3)`, None where none was published; label: uint8 `(h, w)` ids; instance: uint16 `(h, w)`,
    0 for stuff, None where the dataset has none; reference_id: image id (in the train split) of a photograph of the
    wanted style, "" for none; source_label: the label map in its original size, None where `label` is that.
    """

    image_id: str
    photograph: NDArray[np.uint8] | None
    label: NDArray[np.uint8]
    instance: NDArray[np.uint16] | None = None
    reference_id: str = ""
    origin: Origin | None = None
    source_label: NDArray[np.uint8] | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        """The photograph. Raises SisError where none was published."""
        if self.photograph is None:
            raise SisError("this label map has no photograph", where=self.image_id)
        return self.photograph
