# SPDX-License-Identifier: Apache-2.0
"""Inception features as pytorch-fid, torch-fidelity or clean-fid take them; the first are what is called FID's.

Each has its resizer and its range: pytorch-fid and SDM's script 2 x / 255 - 1, the other two (x - 128) / 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.feature_sets import check_choice, options_of
from evaluators.nets.inception import DIMS, SIDE, UNUSED, Inception
from evaluators.network import Source, fill_from
from evaluators.resizers import BEFORE, RESIZERS, resize

TITLE = "Inception of 2015-12-05 (FID)"
VERSION = 1
#: Images that go through the network together: the widest maps behind its stem stay below the 32 MiB from which the C
#: library fetches fresh pages for every tensor.
_TOGETHER = 16


class InceptionExtractor:
    """Images of any size in, features out; on the CPU as well as on a GPU, where pixels arrive as bytes."""

    def __init__(self, network: Inception, resizer: str, dims: int, before: str | None, device: str) -> None:
        self.network = network.fold().to(device)
        self.dims = dims
        self._resizer, self._before, self._device = resizer, before, device

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features `(b, dims)` of uint8 RGB `(b, h, w, 3)`."""
        out = np.empty((len(images), self.dims), np.float32)
        with torch.inference_mode():
            for i in range(0, len(images), _TOGETHER):
                part = images[i : i + _TOGETHER]
                out[i : i + _TOGETHER] = self.network(self.pixels(part), self.dims).cpu().numpy()
        return out

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """What the network sees, `(b, 3, 299, 299)`."""
        x = resize(images, self._resizer, SIDE, self._device, self._before)
        x = x.div_(255).mul_(2).sub_(1) if self._resizer == "pytorch-fid" else x.sub_(128).div_(128)
        return x.contiguous(memory_format=torch.channels_last)


def load(options: Mapping[str, Any], source: Source) -> InceptionExtractor:
    """Build the extractor.

    Args:
        options: resize (one of resizers.RESIZERS), dims (64, 192, 768 or 2048), before (None or sdm-256).
        source: the file `pt_inception-2015-12-05-6726825d.pth`, or none for the stand-in.

    Raises SisError for an unknown option, a senseless value and weights that do not fit.
    """
    chosen, where = options_of("inception", options), "evaluators/features/inception.py"
    check_choice("resize", chosen["resize"], RESIZERS, where)
    check_choice("dims", chosen["dims"], DIMS, where)
    check_choice("before", chosen["before"], (None, *BEFORE), where)
    network = Inception()
    fill_from(network, source, UNUSED)
    return InceptionExtractor(network, chosen["resize"], chosen["dims"], chosen["before"], source.device)
