# SPDX-License-Identifier: Apache-2.0
"""Denoisers: a network under its condition, and guidance from the null branch towards the label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser


def constant(eps: float, variance: float, calls: list[str], name: str) -> Denoiser:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        calls.append(name)
        return Prediction(torch.full_like(x, eps), torch.full_like(x, variance))

    return denoise


def test_guidance_of_one_is_the_conditional_network_and_never_asks_the_null_branch() -> None:
    calls: list[str] = []
    denoiser = guided(constant(2.0, 0.3, calls, "label"), constant(1.0, -1.0, calls, "null"), 1.0)
    assert denoiser(torch.zeros(1), torch.zeros(1)).eps.item() == 2.0
    assert calls == ["label"]


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.5, 2.5), (3.0, 4.0)])
def test_guidance_extrapolates_from_null_to_label_and_keeps_the_conditional_variance(
    scale: float, expected: float
) -> None:
    denoiser = guided(constant(2.0, 0.25, [], "label"), constant(1.0, -1.0, [], "null"), scale)
    found = denoiser(torch.zeros(1), torch.zeros(1))
    assert found.eps.item() == expected
    assert found.variance is not None and found.variance.item() == 0.25


def test_a_network_is_bound_to_its_condition_and_split_into_noise_and_variance() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return torch.cat([x + label, x - label], 1)

    x, label = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 4.0)
    found = network_denoiser(Net(), label, True)(x, torch.zeros(1))
    assert found.eps.unique().item() == 5 and found.variance is not None and found.variance.unique().item() == -3
    assert network_denoiser(Net(), label, False)(x, torch.zeros(1)).variance is None
