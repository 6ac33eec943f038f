# SPDX-License-Identifier: Apache-2.0
"""ControlNet's checkpoints (lllyasviel/ControlNet, and SCP-Diff's, made by the same code): U-Net and ControlNet.

Facts from ControlNet at commit ed85cd1 and SCP-Diff-Toolkit at 859f671, whose model files are the same. The autoencoder
lies in the same file; `ldm_vae` brings it in. The U-Net is taken from here, too: its decoder was trained with the
ControlNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sis.checkpoints.ldm_networks import authors_weights, facts_of, refuse_velocity, weights_of
from sis.checkpoints.ldm_pieces import pieces

#: The method whose network these weights fill.
METHOD = "scp_diff"
#: The parts of a folder in diffusers' layout that are read.
FOLDERS = ("unet", "controlnet")


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether there are both a U-Net and a ControlNet for it."""
    return {"unet", "controlnet"} <= set(pieces(state))


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The networks that the weights fit; raises SisError for missing or other weights."""
    return facts_of(("unet", "controlnet"), state)


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The weights under the names of a `ControlledUNet`; raises SisError where they do not fit it."""
    refuse_velocity(fit, where)
    return weights_of(("unet", "controlnet"), state, network, where)


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names, as a whole checkpoint has them."""
    return authors_weights(("unet", "controlnet"), tensors, fit.get("norm_groups", 32), where)
