# SPDX-License-Identifier: Apache-2.0
"""IIDM's released U-Net (ader47/jittor-jieke-semantic_images_synthesis): the names and shapes of SDM's, on latents.

Facts from the authors' code at commit b9ad35c. A file does not tell whether its network works on pixels or on latents:
the same weights are of both formats, and the run that they are imported for decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sis.checkpoints import sdm
from sis.data.weight_names import refuse_differences
from sis.errors import SisError
from sis.nets.sdm_unet import SDMUNet

#: The method whose network these weights fill.
METHOD = "iidm"

#: What the two methods' networks may differ in and the authors' code does not.
_SAME = {"patch": 1, "predict": "eps"}

recognises, describe = sdm.recognises, sdm.describe


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The authors' weights under the names of the method's network; raises SisError where they do not fit it."""
    sdm.refuse_unlike_sdm({**fit, **_SAME}, where)
    assert isinstance(network, SDMUNet)
    latents, here = sdm.image_channels(state), network.stem.in_channels
    if latents != here:
        what = f"the checkpoint was trained on latents of {latents} channels, the run's autoencoder has {here}"
        raise SisError(what, where=where, fix="use the autoencoder that it was trained with")
    return sdm.import_sdm(state, network, where)


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's weights under the authors' names; raises SisError for a network that their code does not have."""
    sdm.refuse_unlike_sdm({**fit, **_SAME}, where)
    found = sdm.export_sdm(tensors)
    order = sdm.export_sdm(sdm.network_of(found).state_dict())
    refuse_differences(found, order, where)
    return {name: found[name] for name in order}
