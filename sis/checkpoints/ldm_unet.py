# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's U-Net: of whole or bare checkpoints of its authors, of files and folders of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sis.checkpoints.ldm_networks import authors_weights, facts_of, refuse_velocity, weights_of
from sis.checkpoints.ldm_pieces import pieces

#: The method whose network these weights fill.
METHOD = "latent_diffusion"
#: The parts of a folder in diffusers' layout that are read.
FOLDERS = ("unet",)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether there is a U-Net with cross-attention, alone or beside other networks."""
    return "unet" in pieces(state)


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The U-Net that the weights fit; raises SisError for missing or other weights."""
    return facts_of(("unet",), state)


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The weights under the names of the method's network; raises SisError where they do not fit it."""
    refuse_velocity(fit, where)
    return weights_of(("unet",), state, network, where)


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names, as a whole checkpoint has them."""
    return authors_weights(("unet",), tensors, fit.get("norm_groups", 32), where)
