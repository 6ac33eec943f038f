# SPDX-License-Identifier: Apache-2.0
"""Judges ADE20K with CSAILVision's encoders and decoders as their authors test them: softmax averaged over sizes.

Each size is reached by resizing straight to multiples of 32, which changes the aspect a little; no padding, no flip.
Checkpoints from before August 2019 saw blue, green and red in grey levels, those from after it normalised RGB: the
generation says which. Images are judged one by one, so that no answer depends on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from evaluators.nets.csail_resnet import ARCHITECTURES, CsailResnet
from evaluators.nets.upernet import FPN_DIMS, TRAINING_ONLY, decoder
from evaluators.network import Source, fill, fill_seeded
from evaluators.resampling import Size, next_multiple, opencv_bilinear, pillow_bilinear
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate
from sis.errors import SisError

TITLE = "UPerNet and its relatives, CSAILVision's ADE20K segmenters"
VERSION = 1

#: Buffers of the authors' synchronised batch norm, which judging does not use.
EXTRA = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")

#: RGB in [0, 1]: mean and standard deviation of ImageNet.
MEAN_RGB, STD_RGB = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
#: BGR in grey levels 0..255 of the first generation; no standard deviation. Its loaders resized with OpenCV or, at
#: times, SciPy (which is Pillow's filter); OpenCV's is taken here. The two differ only where an image shrinks.
MEAN_BGR = np.array([102.9801, 115.9465, 122.7717], np.float32)

#: Class scores that are enlarged at once: a band of rows, so that 150 maps of a photograph never lie in memory.
_BAND = 2**22

Positive = Annotated[int, Field(ge=1)]


class UpernetOptions(StrictModel):
    """What a card may say of the networks and of how images are fed to them."""

    encoder: Literal["resnet18", "resnet50", "resnet101", "resnet18dilated", "resnet50dilated", "resnet101dilated"] = (
        Field(default="resnet101", description="encoder, of the first file")
    )
    decoder: Literal["upernet", "upernet_lite", "ppm", "ppm_deepsup", "c1", "c1_deepsup"] = Field(
        default="upernet", description="decoder, of the second file"
    )
    classes: Annotated[int, Field(ge=1, le=256)] = Field(default=150, description="classes that are told apart")
    fc_dim: Positive | None = Field(default=None, description="the encoder's last channels; null = as it has them")
    fpn_dim: Positive | None = Field(default=None, description="channels of UPerNet's pyramid; null = the decoder's")
    pool_scales: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[1, 2, 3, 6], description="sides of the grids of pyramid pooling"
    )
    sizes: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[300, 375, 450, 525, 600], description="short sides at which the image is judged"
    )
    max_size: Positive = Field(default=1000, description="longest long side, before rounding up")
    multiple: Positive = Field(default=32, description="sides are rounded up to multiples of this")
    generation: Literal["rgb-2019", "bgr-2017"] = Field(
        default="rgb-2019",
        description="rgb-2019: /255, ImageNet mean and std, Pillow bilinear; bgr-2017: grey levels, OpenCV bilinear",
    )


class Upernet:
    """Encoder and decoder with their authors' test procedure."""

    def __init__(self, encoder: CsailResnet, decoder: nn.Module, options: UpernetOptions, device: str = "cpu") -> None:
        self.encoder = encoder.eval().to(device)
        self.decoder = decoder.eval().to(device)
        self.options = options
        self.classes = options.classes
        self._device = device

    def predict(self, images: NDArray[np.uint8], size: Size | None = None) -> NDArray[np.uint8]:
        """Answer uint8 RGB `(b, h, w, 3)` with class indices `(b, *size)`; size None = the images' own `(h, w)`.

        Scores are enlarged to `size` before the softmax, so that labels of another size than the images' can judge.
        """
        size = size or (images.shape[1], images.shape[2])
        found = np.empty((len(images), *size), np.uint8)
        with torch.inference_mode():
            for image, classes in zip(images, found, strict=True):
                for rows, band in self._bands(image, size):
                    classes[rows] = band.argmax(1)[0].cpu().numpy()
        return found

    def probabilities(self, image: NDArray[np.uint8], size: Size | None = None) -> NDArray[np.float32]:
        """Softmax `(classes, *size)` of `(h, w, 3)`, averaged over the sizes of the options; size None = `(h, w)`."""
        size = size or (image.shape[0], image.shape[1])
        with torch.inference_mode():
            return np.concatenate([band[0].cpu().numpy() for _, band in self._bands(image, size)], axis=1)

    def sizes(self, h: int, w: int) -> list[Size]:
        """The sizes (height, width) at which an image of `h` by `w` is judged."""
        chosen = self.options
        found = []
        for short in chosen.sizes:
            scale = min(short / min(h, w), chosen.max_size / max(h, w))
            # A side below one pixel cannot be resized; the authors' data has none.
            sides = (max(1, int(h * scale)), max(1, int(w * scale)))
            found.append((next_multiple(sides[0], chosen.multiple), next_multiple(sides[1], chosen.multiple)))
        return found

    def normalised(self, image: NDArray[np.uint8], size: Size) -> Tensor:
        """The encoder's input `(1, 3, *size)` for `(h, w, 3)`."""
        if self.options.generation == "rgb-2019":
            pixels = pillow_bilinear(image, size).astype(np.float32) / np.float32(255)
            pixels = (pixels - MEAN_RGB) / STD_RGB
        else:
            pixels = opencv_bilinear(image, size)[:, :, ::-1].astype(np.float32) - MEAN_BGR
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]

    def scores(self, x: Tensor) -> Tensor:
        """`x` normalised `(b, 3, h, w)` -> class scores before the softmax, at the decoder's stride."""
        return self.decoder(self.encoder(x.to(self._device)))

    def _bands(self, image: NDArray[np.uint8], size: Size) -> Iterator[tuple[slice, Tensor]]:
        """The averaged softmax `(1, classes, rows, width)` of every band of rows of the answer."""
        scores = [self.scores(self.normalised(image, one)) for one in self.sizes(*image.shape[:2])]
        step = max(1, _BAND // (self.classes * size[1]))
        for first in range(0, size[0], step):
            rows = slice(first, min(first + step, size[0]))
            mean = torch.zeros(())
            for coarse in scores:
                mean = mean.to(coarse) + F.softmax(enlarged_rows(coarse, size, rows), 1) / len(scores)
            yield rows, mean


def enlarged_rows(coarse: Tensor, size: Size, rows: slice) -> Tensor:
    """The rows `(b, c, n, width)` that resizing `(b, c, h, w)` to `size` bilinearly, half-pixel centres, would give.

    Source places in float32, as torch's own interpolation has them.
    """
    h, height = coarse.shape[2], size[0]
    place = torch.arange(rows.start, rows.stop, dtype=torch.float32, device=coarse.device) + 0.5
    place = (place * torch.tensor(h / height, dtype=torch.float32, device=coarse.device) - 0.5).clamp(min=0)
    top = place.long().clamp(max=h - 1)
    share = (place - top)[:, None]
    band = coarse[:, :, top] * (1 - share) + coarse[:, :, (top + 1).clamp(max=h - 1)] * share
    return F.interpolate(band, (len(top), size[1]), mode="bilinear", align_corners=False)


def load(options: Mapping[str, Any], source: Source) -> Upernet:
    """Build the judge from its options and the authors' two checkpoints, encoder first, or as a seeded stand-in.

    Raises SisError for unknown or senseless options and for files that do not fit the networks.
    """
    chosen = validate(UpernetOptions, dict(options), "options of upernet")
    channels = ARCHITECTURES[chosen.encoder].channels
    if chosen.fc_dim not in (None, channels[-1]):
        raise SisError(f"{chosen.encoder} has {channels[-1]} channels, not fc_dim {chosen.fc_dim}", fix="drop fc_dim")
    if chosen.fpn_dim is not None and chosen.decoder not in FPN_DIMS:
        raise SisError(f"the decoder {chosen.decoder} has no pyramid", fix="drop fpn_dim")
    encoder = CsailResnet(chosen.encoder)
    head = decoder(chosen.decoder, channels, chosen.classes, chosen.fpn_dim, chosen.pool_scales)
    if len(source.files) not in (0, 2):
        what = f"upernet takes two files of weights, encoder and decoder, found {len(source.files)}"
        raise SisError(what, where=source.files[0])
    if source.files:
        fill(encoder, source.files[0], EXTRA)
        fill(head, source.files[1], (*EXTRA, *TRAINING_ONLY))
    else:
        fill_seeded(encoder)
        fill_seeded(head)
    return Upernet(encoder, head, chosen, source.device)
