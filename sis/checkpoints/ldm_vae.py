# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's autoencoder: of whole or bare checkpoints of its authors, of files and folders of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sis.checkpoints import diffusers_folder
from sis.checkpoints.ldm_networks import authors_weights, facts_of, weights_of
from sis.checkpoints.ldm_pieces import pieces
from sis.errors import SisError

#: The method whose network these weights fill.
METHOD = "autoencoder_kl"
#: The parts of a folder in diffusers' layout that are read.
FOLDERS = ("vae",)

#: What scales Stable Diffusion's latents where a folder does not say it.
_SCALE = 0.18215


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether there is a KL autoencoder, alone or beside other networks."""
    return "vae" in pieces(state)


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The autoencoder that the weights fit; raises SisError for missing or other weights."""
    return facts_of(("vae",), state)


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The weights under the names of the method's network; raises SisError where they do not fit it.

    A measured scale (`scale: auto`) is refused, since the file has none; so is one that differs from the folder's.
    """
    scale = fit.get("scale", _SCALE)
    if scale == "auto":
        fix = f"give the number (Stable Diffusion: {_SCALE})"
        raise SisError("scale: auto is measured in training, a checkpoint does not tell it", where=where, fix=fix)
    options = (diffusers_folder.options(where, "vae") if where.is_dir() else None) or {}
    there = options.get("scaling_factor", scale)
    if there != scale:
        raise SisError(f"the folder's latents are scaled by {there}, the run's by {scale}", where=where)
    shifted = [name for name in ("shift_factor", "latents_mean", "latents_std") if options.get(name) is not None]
    if shifted:
        raise SisError(f"no autoencoder of Stable Diffusion 1 or 2: its latents have {shifted[0]}", where=where)
    return weights_of(("vae",), state, network, where)


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names, as a whole checkpoint has them."""
    return authors_weights(("vae",), tensors, fit.get("norm_groups", 32), where)
