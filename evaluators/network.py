# SPDX-License-Identifier: Apache-2.0
"""What a judging network is: the words that the files of evaluators/segmenters and features share with the harness."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sis.data.weight_files import read_weights
from sis.data.weight_names import refuse_differences
from sis.errors import SisError

#: What a stand-in is called in every number that it touches.
STAND_IN = "seeded-random"


@dataclass(frozen=True)
class Source:
    """Where a network's weights come from: files that were found, or none for the seeded stand-in."""

    files: Sequence[Path] = ()
    device: str = "cpu"


class Segmenter(Protocol):
    """A network that names the class of every pixel."""

    #: Number of classes; answers are 0..classes-1.
    classes: int

    def predict(self, images: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Answer uint8 RGB `(b, h, w, 3)` with class indices `(b, *size)`; size None = the images' own `(h, w)`."""
        ...


class Extractor(Protocol):
    """A network that turns an image into a feature vector."""

    #: Length of the vectors.
    dims: int

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features `(b, dims)` of uint8 RGB `(b, h, w, 3)`."""
        ...


class NetworkFile(Protocol):
    """The shape of a file in evaluators/segmenters and evaluators/features.

    It checks the options of `load` itself: an unknown one, or a senseless value, is a SisError that names the nearest.
    """

    TITLE: str
    VERSION: int

    def load(self, options: Mapping[str, Any], source: Source) -> Any:
        """Build the network with these options and the source's weights. Raises SisError for files that do not fit."""
        ...


def fill(network: nn.Module, path: Path, extra: Sequence[str] = (), fix: str = "fetch the file again") -> None:
    """Load a checkpoint strictly by name. Raises SisError that lists what differs.

    extra: endings of upstream buffers that take no part in judging and are dropped.
    """
    found = read_weights(path).tensors
    found = {k.removeprefix("module."): v for k, v in found.items()}
    kept = {k: v for k, v in found.items() if not k.endswith(tuple(extra))} if extra else found
    own = network.state_dict()
    for name, value in own.items():  # files older than torch 0.4.1 lack the counter, and judging does not use it
        if name.endswith("num_batches_tracked"):
            kept.setdefault(name, value)
    refuse_differences(kept, own, path, fix)
    network.load_state_dict(kept)


def fill_seeded(network: nn.Module, seed: int = 0, gain: float = 2**0.5) -> None:
    """Give every parameter a value that follows from its name alone, so that a stand-in is the same everywhere.

    Matrices and kernels keep the variance through a ReLU (He et al. 2015); norms are near the identity.
    """
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            noise = torch.from_numpy(np.asarray(rng.standard_normal(tuple(value.shape)), np.float32))
            if name.endswith("running_var"):
                value.copy_(torch.exp(0.1 * noise))
            elif value.ndim >= 2:
                value.copy_(noise * gain / float(np.prod(value.shape[1:])) ** 0.5)
            elif name.endswith("weight"):
                value.copy_(1 + 0.1 * noise)
            else:
                value.copy_(0.1 * noise)


def fill_from(network: nn.Module, source: Source, extra: Sequence[str] = ()) -> None:
    """Load the source's one file, or stand-in weights if it has none; leaves the network ready to judge on its device.

    extra: as in `fill`.
    Raises SisError for more than one file and for weights that do not fit.
    """
    if len(source.files) > 1:
        raise SisError(f"the network takes one file of weights, found {len(source.files)}", where=source.files[1])
    if source.files:
        fill(network, source.files[0], extra)
    else:
        fill_seeded(network)
    network.eval()  # not chained: networks of mmsegmentation answer None
    network.to(source.device)


def classes_at(logits: Tensor, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Resize one picture's logits `(1, c, h, w)` bilinearly (corners not aligned) and name the classes, `size`."""
    planes = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return planes[0].argmax(0).to(torch.uint8).cpu().numpy()
