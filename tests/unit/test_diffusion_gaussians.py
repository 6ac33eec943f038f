# SPDX-License-Identifier: Apache-2.0
"""Gaussians of a diffusion against facts that follow from their equations by hand: variances, statistics, pixels."""

from __future__ import annotations

import math

import pytest
import torch

from sis.diffusion import gaussians
from sis.diffusion.schedule import linear


def test_a_fixed_variance_is_used_even_where_one_is_learned() -> None:
    chain, like, t = linear(50).respaced(5), torch.zeros(2, 3, 4, 4), torch.tensor([3, 1])
    learned = torch.full_like(like, 0.4)
    for kind in ("small", "large"):
        fixed = gaussians.reverse_log_variance(chain, like, t, learned, kind)
        assert torch.equal(fixed, gaussians.reverse_log_variance(chain, like, t, None, kind)) and fixed.shape[1:] == (
            1,
            1,
            1,
        )
    small, large = (gaussians.reverse_log_variance(chain, like, t, None, kind) for kind in ("small", "large"))
    between = gaussians.reverse_log_variance(chain, like, t, learned)
    torch.testing.assert_close(between, (0.7 * large + 0.3 * small).expand_as(between))


def test_the_forward_process_has_the_mean_and_variance_that_its_samples_have() -> None:
    schedule, t = linear(50), torch.tensor([20])
    start = torch.full((1, 1, 200, 200), 0.7)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    mean, variance, log_variance = gaussians.q_mean_variance(schedule, start, t)
    samples = schedule.q_sample(start, t, noise)
    assert samples.mean().item() == pytest.approx(mean.mean().item(), abs=0.02)
    assert samples.var().item() == pytest.approx(variance.item(), rel=0.03)
    assert log_variance.item() == pytest.approx(math.log(variance.item()), rel=1e-5)


def test_channel_statistics_are_met_in_every_channel_of_every_image_after_the_clipping() -> None:
    schedule, t = linear(50), torch.tensor([49, 10])
    x = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.5, 0.6]])
    plain = gaussians.predict_start(schedule, x, t, 0.2 * x, clip=True)
    found = gaussians.predict_start(schedule, x, t, 0.2 * x, clip=True, statistics=wanted)
    torch.testing.assert_close(found.mean((2, 3)), wanted[0].expand(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), wanted[1].expand(2, 3), atol=1e-5, rtol=0)
    own = torch.stack([plain[0].mean((1, 2)), plain[0].std((1, 2))])
    torch.testing.assert_close(gaussians.with_statistics(plain[:1], own), plain[:1], atol=1e-5, rtol=1e-4)


def test_the_likelihood_of_all_pixel_values_sums_to_one() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, scale in ((0.1, 0.05), (-0.98, 0.2), (1.0, 0.01)):
        total = gaussians.discrete_log_likelihood(levels, torch.full((256,), mean), torch.full((256,), math.log(scale)))
        assert total.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
