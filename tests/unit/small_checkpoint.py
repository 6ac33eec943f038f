# SPDX-License-Identifier: Apache-2.0
"""A small network that the authors of SDM could have, and the checkpoint that they would have of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sis.checkpoints.sdm import export_sdm
from sis.nets.sdm_unet import SDMUNet, UNetConfig

#: A network that the authors' code could have, and that is small: 32 groups and 128 hidden channels are fixed there.
SMALL = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2]}
LABELS = 11  # of scenes, void included


def filled(network: SDMUNet) -> SDMUNet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return network


def small(labels: int = LABELS, **changes: Any) -> SDMUNet:
    return filled(SDMUNet(UNetConfig.model_validate(SMALL | changes), 3, labels))


@pytest.fixture
def theirs() -> dict[str, Tensor]:
    """A checkpoint of the authors for `small()`."""
    return export_sdm(small().state_dict())
