# SPDX-License-Identifier: Apache-2.0
"""The LPIPS that the SDM paper reports: not the lpips package's number, whose input and image size differ.

SDM's evaluation squashes every image to 256x256 and then to 299x299, normalises it for an ImageNet classifier, and
hands it to an LPIPS with AlexNet that standardises once more with constants meant for [-1, 1]. Its loader averages
batches of 50 label maps and then the batches; here all label maps weigh the same, which is equal where 50 divides their
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluators.lpips_backbone import batches_of, device_of, heads, pair_terms, stages

if TYPE_CHECKING:
    import lpips

#: The classifier's statistics of RGB in [0, 1], which SDM's loader applies.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SdmLpips:
    """SDM's LPIPS ready to compare images.

    net: the lpips package's AlexNet, whose scaling layer holds the second standardisation; sizes: sides of the squares
    that images are squashed to, one after the other; eps: added to the squared length of a feature vector.
    """

    net: lpips.LPIPS
    sizes: tuple[int, ...] = (256, 299)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    eps: float = 1e-10

    def pairwise(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """SDM's LPIPS of all pairs i < j of `(k, h, w, 3)`, in row order: `(k (k - 1) / 2)` values."""
        return self.compare(self.loaded(images))

    def loaded(self, images: NDArray[np.uint8]) -> Tensor:
        """What SDM's loader makes of `(k, h, w, 3)`: float32 `(k, 3, side, side)`, normalised once."""
        small = torch.from_numpy(np.stack([self._squashed(image) for image in images]))
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return (small.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def compare(self, x: Tensor) -> NDArray[np.float64]:
        """The module alone: all pairs i < j of float32 `(k, 3, h, w)`, which it standardises itself."""
        x = x.to(device_of(self.net))
        with torch.inference_mode():
            inputs = [self.net.scaling_layer(x[part]) for part in batches_of(len(x), *x.shape[2:])]
            terms = pair_terms(inputs, stages(self.net), heads(self.net), lambda squared: (squared + self.eps).sqrt())
        return terms.sum(1)

    def _squashed(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = Image.fromarray(image)
        for side in self.sizes:
            picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(picture)
