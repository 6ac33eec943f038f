# SPDX-License-Identifier: Apache-2.0
"""LPIPS with its backbone from a checked file, or with a seeded stand-in that says so (Zhang et al. 2018).

The linear heads v0.1 come with the lpips package. Features are computed once for each image, then compared in
pairs; the package's own loop over pairs runs the network k - 1 times as often.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.weights import WeightStore
from sis.config.protocols import NetworkRecord
from sis.errors import SisError

if TYPE_CHECKING:
    import lpips

STAND_IN = "seeded-random-backbone"
STAND_IN_SEED = 0


@dataclass(frozen=True)
class LpipsBackbone:
    """An LPIPS network ready to compare images."""

    net: lpips.LPIPS

    def features(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Layer outputs of `(k, h, w, 3)`, each of unit length over channels: list of `(k, c, h', w')`."""
        import lpips

        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
            return [lpips.normalize_tensor(layer) for layer in self.net.net(self.net.scaling_layer(x))]

    def pairwise(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """LPIPS of all pairs i < j of `(k, h, w, 3)`, in row order: `(k (k - 1) / 2)` values, 0 = equal."""
        layers = self.features(images)
        k = len(images)
        with torch.inference_mode():
            heads = [head.get_parameter("model.1.weight")[0, :, 0, 0] for head in self.net.lins]
            rows = [torch.zeros(k - 1 - i, dtype=torch.float64) for i in range(k - 1)]
            for layer, head in zip(layers, heads, strict=True):
                for i, row in enumerate(rows):  # a loop over i keeps the memory at k feature maps
                    squared = (layer[i] - layer[i + 1 :]).square_().mean((2, 3))
                    row += (squared @ head).double()
        return torch.cat(rows).numpy()


def lpips_record(net: str, weights: WeightStore) -> tuple[NetworkRecord, str]:
    """What `lpips_backbone` would build, and the stand-in's name ("" for real weights)."""
    found = weights.find(f"lpips-{net}")
    heads = f"lpips {version('lpips')} heads v0.1"
    if found is None:
        rule = f"torch seed {STAND_IN_SEED}"
        return NetworkRecord(name=f"{heads}, {STAND_IN} {net}", sha256=rule), STAND_IN
    return NetworkRecord(name=f"{heads}, {found[0].name}", sha256=found[1]), ""


def lpips_backbone(net: str, weights: WeightStore) -> LpipsBackbone:
    """Build LPIPS with `net` (alex, vgg, squeeze): the real backbone where its file lies, else the stand-in.

    Global random state is left as it was. Raises SisError when the file is not the listed one.
    """
    model = _untrained(net)
    found = weights.find(f"lpips-{net}")
    if found is not None:
        _fill(model, found[0])
    return LpipsBackbone(model)


def _untrained(net: str) -> lpips.LPIPS:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # "pretrained is deprecated": lpips 0.1.4, twice
        import lpips

        torch.manual_seed(STAND_IN_SEED)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False).requires_grad_(False)


def _fill(model: lpips.LPIPS, path: Path) -> None:
    """Copy torchvision's `features.<i>.*` into the package's `net.slice<j>.<i>.*`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        own = model.net.state_dict()
        model.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in own})
    except (
        KeyError,
        RuntimeError,
        AttributeError,
        TypeError,
        EOFError,
        ValueError,
        UnpicklingError,
    ) as error:
        raise SisError("these weights do not fit the LPIPS backbone", where=path, fix="fetch the file again") from error
