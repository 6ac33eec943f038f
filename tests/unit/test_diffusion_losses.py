# SPDX-License-Identifier: Apache-2.0
"""The training objective against facts that follow from its equations by hand, term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from two_starts import NOISE, START

from sis.diffusion import gaussians, losses
from sis.diffusion.schedule import Schedule, linear


@pytest.fixture
def noisy() -> tuple[Schedule, Tensor, Tensor, Tensor]:
    """Schedule, t, eps and x_t of the images START."""
    schedule, t = linear(50), torch.tensor([5, 30])
    eps = NOISE.normal("eps", 0, (3, 4, 4))
    return schedule, t, eps, schedule.q_sample(START, t, eps)


def test_the_variational_term_vanishes_at_the_true_posterior(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    found = losses.variational_term(schedule, eps, torch.full_like(x, -1.0), START, x, t)
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-4, rtol=0)


def test_the_variational_term_is_the_divergence_of_two_gaussians(
    noisy: tuple[Schedule, Tensor, Tensor, Tensor],
) -> None:
    schedule, t, eps, x = noisy
    found = losses.variational_term(schedule, eps, torch.full_like(x, 1.0), START, x, t)
    ratio = schedule.posterior_variance[t.numpy()] / schedule.betas[t.numpy()]  # same means, variances tilde and beta
    np.testing.assert_allclose(found, 0.5 * (ratio - 1 - np.log(ratio)) / math.log(2), rtol=1e-3, atol=1e-6)


def test_the_loss_without_variance_is_the_squared_error(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    found = losses.hybrid_loss(schedule, eps + 0.5, START, x, t, eps)
    torch.testing.assert_close(found, torch.full((2,), 0.25))


def test_the_hybrid_loss_of_a_perfect_network_is_zero(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    output = torch.cat([eps, torch.full_like(eps, -1.0)], 1)
    torch.testing.assert_close(
        losses.hybrid_loss(schedule, output, START, x, t, eps), torch.zeros(2), atol=1e-4, rtol=0
    )


def test_the_variational_gradient_reaches_the_variance_only(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    shifted = (eps + 0.1).requires_grad_()
    variance = torch.zeros_like(x, requires_grad=True)
    losses.hybrid_loss(schedule, torch.cat([shifted, variance], 1), START, x, t, eps).sum().backward()
    assert shifted.grad is not None and variance.grad is not None
    torch.testing.assert_close(shifted.grad, torch.full_like(eps, 2 * 0.1 / 48), rtol=1e-3, atol=1e-6)
    assert (variance.grad != 0).all()


def test_the_terms_of_the_objective_add_up_to_it(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    output = torch.cat([0.9 * eps, 0.2 * eps], 1)
    simple, variational = losses.hybrid_terms(schedule, output, START, x, t, eps)
    assert variational is not None and (variational > 0).all()
    torch.testing.assert_close(simple, (0.01 * eps**2).mean((1, 2, 3)))
    assert torch.equal(simple + variational, losses.hybrid_loss(schedule, output, START, x, t, eps))
    assert losses.hybrid_terms(schedule, 0.9 * eps, START, x, t, eps).variational is None


def test_clipping_the_predicted_image_changes_the_variational_term_where_it_left_the_range(
    noisy: tuple[Schedule, Tensor, Tensor, Tensor],
) -> None:
    schedule, t, eps, x = noisy
    variance = torch.zeros_like(x)
    for wrong, changes in ((eps, False), (-2 * eps, True)):
        terms = [losses.variational_term(schedule, wrong, variance, START, x, t, clip=clip) for clip in (False, True)]
        assert torch.equal(*terms) != changes and (terms[1] <= terms[0]).all()


def test_the_prior_term_is_what_the_last_step_still_knows_of_the_image() -> None:
    schedule, start = linear(1000), torch.full((2, 3, 4, 4), 100.0)
    start[1] = 1
    bar = schedule.alphas_cumprod[-1]
    expected = [0.5 * (-1 - math.log(1 - bar) + 1 - bar + bar * level**2) / math.log(2) for level in (100, 1)]
    # The divergence is the difference of numbers near one: single precision keeps about 1e-7 of it.
    np.testing.assert_allclose(losses.prior_term(schedule, start), expected, rtol=1e-4, atol=1e-6)


def test_at_the_first_step_the_variational_term_is_a_likelihood_in_bits() -> None:
    schedule, t = linear(50), torch.tensor([0, 0])
    eps = NOISE.normal("eps", 0, (3, 4, 4))
    x = schedule.q_sample(START, t, eps)
    found = losses.variational_term(schedule, eps, torch.full_like(x, -1.0), START, x, t)
    log_scale = torch.full_like(START, 0.5 * schedule.posterior_log_variance_clipped[0])
    expected = -gaussians.discrete_log_likelihood(START, START, log_scale).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
