# SPDX-License-Identifier: Apache-2.0
"""The U-Net of CelebAMask-HQ's face parsing: the judge of faces in the papers.

Its classes, in order: background, skin, nose, eye glasses, left eye, right eye, left brow, right brow, left ear, right
ear, mouth, upper lip, lower lip, hair, hat, ear ring, neck lace, neck, cloth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from evaluators.nets.face_unet import WIDTHS, FaceUNet, refuse_uneven
from evaluators.network import Source, fill_from
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate
from sis.data.resize import nearest
from sis.errors import SisError

TITLE = "Face U-Net (CelebAMask-HQ)"
VERSION = 1

Side = Annotated[int, Field(gt=0)]
FILTERS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


class Options(StrictModel):
    """What a card may set; the defaults are the published network and its authors' tester."""

    feature_scale: int = Field(4, gt=0, le=WIDTHS[0], description="divides the channels 64, 128, 256, 512, 1024")
    classes: int = Field(19, gt=0, le=256, description="outputs")
    norm: bool = Field(True, description="batch norm after each 3x3 convolution")
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = Field(
        512, description="what pictures are resized to before they are fed: a side, or [height, width]"
    )
    resize: Literal["nearest", "bilinear"] = Field(
        "nearest", description="Pillow's filter for it: nearest as in the authors' tester, bilinear as in training"
    )


class FaceSegmenter:
    """Feeds pictures one by one at one size, R, G, B in [-1, 1]; classes are decided there, then sampled."""

    def __init__(self, network: FaceUNet, options: Options, device: str = "cpu") -> None:
        self.network, self.classes, self._device = network, options.classes, device
        h, w = options.size if isinstance(options.size, list) else (options.size, options.size)
        self.size, self._filter = (h, w), FILTERS[options.resize]

    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB `(b, h, w, 3)` -> what the network is fed, float `(b, 3, *size)`."""
        if images.shape[1:3] != self.size:
            h, w = self.size
            images = np.stack([np.asarray(Image.fromarray(i).resize((w, h), self._filter)) for i in images])
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
        return x.float().div_(255).sub_(0.5).div_(0.5)

    def predict(self, images: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Class indices `(b, *size)`; size None = the pictures'.

        The authors compare classes at the network's size. Elsewhere the answer is those classes sampled at the places
        where label maps are sampled too (nearest), so that no class is invented by interpolation.
        """
        found = np.empty((len(images), *(size or images.shape[1:3])), np.uint8)
        with torch.inference_mode():
            for image, classes in zip(images, found, strict=True):
                decided = self.network(self.prepare(image[None]).to(self._device))[0].argmax(0)
                classes[:] = nearest(decided.to(torch.uint8).cpu().numpy(), classes.shape)
        return found


def load(options: Mapping[str, Any], source: Source) -> FaceSegmenter:
    """Build the judge. Raises SisError for unknown options, an uneven size, and weights that do not fit."""
    chosen = validate(Options, dict(options), "options of segmenter face_unet")
    if WIDTHS[0] % chosen.feature_scale:
        raise SisError(f"feature_scale {chosen.feature_scale} does not divide {WIDTHS[0]} channels", fix="take 4")
    network = FaceUNet(chosen.feature_scale, chosen.classes, norm=chosen.norm)
    judge = FaceSegmenter(network, chosen, source.device)
    refuse_uneven(judge.size)
    fill_from(network, source)
    return judge
