# SPDX-License-Identifier: Apache-2.0
"""DINOv2 features (Oquab et al. 2023): the class token after the last norm, as Stein et al. (2023) judge with.

The network is Dinov2Model of the package transformers with weights from a local file in its names (`model.safetensors`
of facebook/dinov2-small, -base and -large). It sees pictures of `size` pixels a side with ImageNet's mean and spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from evaluators.feature_sets import check_choice, options_of
from evaluators.network import Source, fill_from
from evaluators.resizers import RESIZERS, resize
from sis.errors import SisError

if TYPE_CHECKING:
    from transformers import Dinov2Model

TITLE = "DINOv2"
VERSION = 1
#: Width, layers and heads of the published networks (Dosovitskiy et al. 2021, table 1); all have patches of 14 pixels.
VARIANTS = {"vits14": (384, 12, 6), "vitb14": (768, 12, 12), "vitl14": (1024, 24, 16)}
_PATCH = 14
#: Side of the pictures that the published position embeddings stand for.
_TRAINED_SIDE = 518
#: Mean and standard deviation of ImageNet's channels, RGB in 0..1.
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TOGETHER = 32


class Dinov2Extractor:
    """Images of any size in, class tokens out."""

    def __init__(self, network: Dinov2Model, size: int, resizer: str, device: str) -> None:
        self.network = nn.Module.to(network, torch.device(device)).eval()
        self.dims: int = network.config.hidden_size
        self._size, self._resizer, self._device = size, resizer, device
        self._mean, self._spread = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (_MEAN, _SPREAD))

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features `(b, dims)` of uint8 RGB `(b, h, w, 3)`."""
        out = np.empty((len(images), self.dims), np.float32)
        with torch.inference_mode():
            for i in range(0, len(images), _TOGETHER):
                x = resize(images[i : i + _TOGETHER], self._resizer, self._size, self._device)
                x = (x / 255 - self._mean) / self._spread
                out[i : i + _TOGETHER] = self.network(pixel_values=x).pooler_output.cpu().numpy()
        return out


def load(options: Mapping[str, Any], source: Source) -> Dinov2Extractor:
    """Build the extractor.

    Args:
        options: variant (one of VARIANTS), size (pixels, a multiple of 14), resize (one of resizers.RESIZERS).
        source: a file of weights in the names of transformers, or none for the stand-in.

    Raises SisError for an unknown option, a senseless value, weights that do not fit, and without transformers.
    """
    chosen, where = options_of("dinov2", options), "evaluators/features/dinov2.py"
    check_choice("variant", chosen["variant"], tuple(VARIANTS), where)
    check_choice("resize", chosen["resize"], RESIZERS, where)
    size = chosen["size"]
    if type(size) is not int or size < _PATCH or size % _PATCH:
        raise SisError(f"size must be a multiple of {_PATCH}, found {size!r}", where=where)
    width, layers, heads = VARIANTS[chosen["variant"]]
    network = build(width, layers, heads, _TRAINED_SIDE)
    fill_from(network, source)
    return Dinov2Extractor(network, size, chosen["resize"], source.device)


def build(width: int, layers: int, heads: int, side: int) -> Dinov2Model:
    """An empty network; `side` is that of the position embeddings. Raises SisError without transformers."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError as error:
        fix = "pip install -c constraints.txt -e '.[sd]'"
        raise SisError("DINOv2 features need the package transformers", fix=fix) from error
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=side, patch_size=_PATCH
    )
    return Dinov2Model(config)
