# SPDX-License-Identifier: Apache-2.0
"""Pixels: the way from the network's range to bytes loses none of them and lets nothing through that is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from sis.diffusion.pixels import to_uint8
from sis.errors import SisError


def test_pixels_are_rounded_to_nearest_and_clipped() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 9.0, 3 / 127.5 - 1, 3.4 / 127.5 - 1, 3.6 / 127.5 - 1]])
    assert to_uint8(x, ("a",)).tolist() == [[0, 0, 128, 255, 255, 3, 3, 4]]


def test_every_pixel_value_survives_the_round_trip_to_the_networks_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(to_uint8(values.float() / 127.5 - 1, ("a",)), values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_named(bad: float) -> None:
    x = torch.zeros(3, 2)
    x[1, 1] = bad
    with pytest.raises(SisError, match="not finite: val-7"):
        to_uint8(x, ("val-6", "val-7", "val-8"))
