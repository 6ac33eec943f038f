# SPDX-License-Identifier: Apache-2.0
"""Rating distributions of NIMA: what chance a picture has of each rating from 1 to 10.

Options: base (vgg16 or mobilenet), feed (how a picture comes to 224x224: crop = shorter side to 256, then the centre;
squash = straight). The default is vgg16 with crop; mobilenet is squashed by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluators.nets.nima import RATINGS, MobileNima, VggNima
from evaluators.network import Source, fill_from
from sis.errors import SisError, did_you_mean

TITLE = "NIMA rating distribution"
VERSION = 1
_WHERE = "evaluators/features/nima.py"
#: Side of what the network sees, and of what it is cut from.
_SIDE, _SHORTER = 224, 256
#: Images that go through the network together; more gain nothing and cost memory.
_TOGETHER = 8
#: Each network, its default way of feeding, and the mean and deviation that its input is normalised with.
_BASES = {
    "vgg16": (VggNima, "crop", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mobilenet": (MobileNima, "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_FEEDS = ("crop", "squash")


class Nima:
    """Images of any size in, chances of the ratings 1..10 out."""

    dims = RATINGS

    def __init__(self, network: VggNima | MobileNima, feed: str, mean: Tensor, std: Tensor, device: str) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self._feed, self._mean, self._std, self._device = feed, mean, std, device

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Chances `(b, 10)`, rows with sum 1, of uint8 RGB `(b, h, w, 3)`."""
        out = np.empty((len(images), RATINGS), np.float32)
        with torch.inference_mode():
            for i in range(0, len(images), _TOGETHER):
                out[i : i + _TOGETHER] = self.network(self.pixels(images[i : i + _TOGETHER])).cpu().numpy()
        return out

    def pixels(self, images: NDArray[np.uint8]) -> Tensor:
        """What the network sees, `(b, 3, 224, 224)`."""
        fed = np.stack([_fed(image, self._feed) for image in images])
        x = torch.from_numpy(fed).to(self._device).permute(0, 3, 1, 2).float() / 255
        return (x - self._mean.to(self._device)) / self._std.to(self._device)


def load(options: Mapping[str, Any], source: Source) -> Nima:
    """Build the extractor with the checkpoint's file, or the stand-in without one.

    Raises SisError for an unknown option, a senseless value and weights that do not fit.
    """
    for name in options:
        if name not in ("base", "feed"):
            raise SisError(f"nima has no option {name!r}", where=_WHERE, fix=did_you_mean(name, ["base", "feed"]))
    base = _choice("base", options.get("base", "vgg16"), tuple(_BASES))
    kind, usual, mean, std = _BASES[base]
    feed = _choice("feed", options.get("feed", usual), _FEEDS)
    network = kind()
    fill_from(network, source)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return Nima(network, feed, mean, std, source.device)


def _choice(option: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise SisError(f"nima: {option} is {value!r}", where=_WHERE, fix=did_you_mean(str(value), list(known)))
    return value


def _fed(image: NDArray[np.uint8], feed: str) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    if feed == "squash":
        return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    width, height = picture.size
    scale = _SHORTER / min(width, height)
    size = (max(_SHORTER, int(width * scale)), max(_SHORTER, int(height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - _SIDE) / 2), round((size[1] - _SIDE) / 2)
    return np.asarray(picture.crop((left, top, left + _SIDE, top + _SIDE)))
