# SPDX-License-Identifier: Apache-2.0
"""LPIPS of all pairs of some images, each seen once by a backbone from a checked file or by a seeded stand-in.

Zhang et al. 2018. The networks and the linear heads v0.1 come with the lpips package, whose own loop over pairs runs
the network k - 1 times as often and gives the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evaluators.weights import WeightStore
from sis.config.protocols import NetworkRecord
from sis.data.weight_files import read_weights
from sis.data.weight_names import refuse_differences

if TYPE_CHECKING:
    import lpips

STAND_IN = "seeded-random-backbone"
STAND_IN_SEED = 0
#: Added to the length of a feature vector before the division by it, as the package does.
EPS = 1e-10
#: Pixels that a network sees at once: 20 images of 128x128. More is no faster, and much more needs memory.
_BATCH_PIXELS = 20 * 128 * 128
#: Elements of the differences formed at once, which then stay in a processor's cache (1 MiB).
_BLOCK = 1 << 18

#: One stage of a backbone, and `divisor(squared length)` that brings a feature vector to unit length.
Stage = Callable[[Tensor], Tensor]
Divisor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LpipsBackbone:
    """An LPIPS network ready to compare images."""

    net: lpips.LPIPS

    def pairwise(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """LPIPS of all pairs i < j of `(k, h, w, 3)`, in row order: `(k (k - 1) / 2)` values, 0 = equal."""
        return self.terms(images).sum(1)

    def terms(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What each of the backbone's n layers adds to the pairs of `pairwise`: `(k (k - 1) / 2, n)`."""
        with torch.inference_mode():
            inputs = [self._input(images[part]) for part in batches_of(*images.shape[:3])]
            return pair_terms(inputs, stages(self.net), heads(self.net), lambda squared: squared.sqrt() + EPS)

    def difference_map(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Where two images `(h, w, 3)` differ: `(h, w)`, the layers' maps enlarged bilinearly and summed."""
        with torch.inference_mode():
            x, total = self._input(np.stack([one, other])), torch.zeros(())
            for stage, head in zip(stages(self.net), heads(self.net), strict=True):
                x = stage(x)
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + EPS)
                layer = torch.einsum("chw,c->hw", (unit[0] - unit[1]).square(), head)[None, None]
                total = total + F.interpolate(layer, one.shape[:2], mode="bilinear", align_corners=False)
        return total[0, 0].cpu().numpy()

    def _input(self, images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(images).to(device_of(self.net)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.net.scaling_layer(x) if self.net.version == "0.1" else x  # heads v0.0 were fitted without it


def batches_of(count: int, height: int, width: int) -> list[slice]:
    """Cut so many images into runs that a network may see at once."""
    size = max(1, _BATCH_PIXELS // (height * width))
    return [slice(start, start + size) for start in range(0, count, size)]


def stages(net: lpips.LPIPS) -> list[Stage]:
    """The backbone in the pieces whose outputs are compared."""
    return [getattr(net.net, f"slice{i + 1}") for i in range(len(net.lins))]


def device_of(net: lpips.LPIPS) -> torch.device:
    """Where a network lies."""
    return next(net.parameters()).device


def heads(net: lpips.LPIPS) -> list[Tensor]:
    """The channels' weights `(c,)` of each piece."""
    return [head.get_parameter("model.1.weight")[0, :, 0, 0] for head in net.lins]


def pair_terms(
    inputs: list[Tensor], pieces: Sequence[Stage], weights: Sequence[Tensor], divisor: Divisor
) -> NDArray[np.float64]:
    """Weighted squared distance of unit feature vectors, mean over positions, of all pairs i < j: `(pairs, layers)`.

    Layer by layer, so that one layer of all images is the most that lies in memory.

    Args:
        inputs: k prepared images `(b, 3, h, w)` in batches.
        pieces: what turns one layer's maps into the next's.
        weights: `(c,)` of each layer; any sign.
        divisor: what the maps are divided by, from their squared length over channels `(b, 1, h', w')`.
    """
    maps, columns = list(inputs), []
    for piece, weight in zip(pieces, weights, strict=True):
        for i in range(len(maps)):  # one by one: each batch of the layer before is let go
            maps[i] = piece(maps[i])
        rows = [means @ weight for means in _squared_differences(maps, divisor)]
        columns.append(torch.cat(rows).double().cpu())
    return torch.stack(columns, 1).numpy()


def _squared_differences(maps: list[Tensor], divisor: Divisor) -> list[Tensor]:
    """Mean over positions of (unit map i - unit map j)^2 for each channel: of image i `(k - 1 - i, c)`, all j > i."""
    k, (c, h, w) = sum(map(len, maps)), maps[0].shape[1:]
    lengths = [divisor(m.square().sum(1, keepdim=True)) for m in maps]
    means = [maps[0].new_empty(k - 1 - i, c) for i in range(k - 1)]
    channels = min(c, max(1, _BLOCK // (h * w)))
    images = max(1, _BLOCK // (channels * h * w))
    for first in range(0, c, channels):
        part = slice(first, first + channels)
        unit = torch.cat([m[:, part] / length for m, length in zip(maps, lengths, strict=True)])
        for i in range(k - 1):
            for j in range(i + 1, k, images):
                difference = unit[i] - unit[j : j + images]
                means[i][j - i - 1 : j - i - 1 + images, part] = difference.square_().mean((2, 3))
    return means


def lpips_record(net: str, weights: WeightStore) -> tuple[NetworkRecord, str]:
    """What `lpips_backbone` would build, and the stand-in's name ("" for real weights)."""
    found = weights.look(f"lpips-{net}")
    listed = f"lpips {installed('lpips')} heads v0.1"
    if found is None:
        rule = f"torch seed {STAND_IN_SEED}"
        return NetworkRecord(name=f"{listed}, {STAND_IN} {net}", sha256=rule), STAND_IN
    return NetworkRecord(name=f"{listed}, {found.card.file}", sha256=found.sha256, verified=found.verified), ""


def lpips_backbone(net: str, weights: WeightStore, device: str = "cpu") -> LpipsBackbone:
    """Build LPIPS with `net` (alex, vgg, squeeze): the real backbone where its file lies, else the stand-in.

    Global random state is left as it was. Raises SisError when the file is not the listed one.
    """
    model = seeded_network(net)
    found = weights.find(f"lpips-{net}")
    if found is not None:
        _fill(model, found[0])
    return LpipsBackbone(model.to(device))


def seeded_network(net: str, heads_version: Literal["0.0", "0.1"] = "0.1") -> lpips.LPIPS:
    """The stand-in: the package's network with its own heads and a backbone from a seed."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # "pretrained is deprecated": lpips 0.1.4, twice
        import lpips

        torch.manual_seed(STAND_IN_SEED)
        return lpips.LPIPS(net=net, version=heads_version, pnet_rand=True, verbose=False).requires_grad_(False)


def _fill(model: lpips.LPIPS, path: Path) -> None:
    """Copy torchvision's `features.<i>.*` into the package's `net.slice<j>.<i>.*`; its classifier is not used."""
    found = {k: v for k, v in read_weights(path).tensors.items() if not k.startswith("classifier.")}
    theirs = {key: "features." + key.split(".", 1)[1] for key in model.net.state_dict()}
    needed = {theirs[key]: value for key, value in model.net.state_dict().items()}
    refuse_differences(found, needed, path, "fetch the file again")
    model.net.load_state_dict({key: found[name] for key, name in theirs.items()})
