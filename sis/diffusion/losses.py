# SPDX-License-Identifier: Apache-2.0
"""Training objective of SDM: L_simple plus the variational term of the learned variance (SDM, Eqs. 3-5)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.denoiser import noise_of_velocity
from sis.diffusion.schedule import Schedule, take


def hybrid_loss(
    schedule: Schedule, output: Tensor, start: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, velocity: bool = False
) -> Tensor:
    """L_simple + lambda L_vlb for each image, `(b,)`.

    The variational term is in bits a dimension for the single step t. The paper's lambda = 0.001 multiplies the sum
    over all 1000 steps, which is this term with weight 1. Its gradient reaches the variance only.

    Args:
        output: network output `(b, 2c, h, w)` (prediction, variance) or `(b, c, h, w)` (then L_simple alone).
        start, noisy, noise: x_0, x_t and the noise between them, `(b, c, h, w)`.
        t: indices into `schedule`, `(b,)`.
        velocity: the network predicts v instead of the noise, and L_simple is the error of v.
    """
    channels = start.shape[1]
    predicted, target, eps = output[:, :channels], noise, output[:, :channels]
    if velocity:
        bar = schedule.alphas_cumprod
        target = take(np.sqrt(bar), t, start) * noise - take(np.sqrt(1 - bar), t, start) * start
        eps = noise_of_velocity(schedule, predicted, noisy, t)
    simple = ((target - predicted) ** 2).flatten(1).mean(1)
    if output.shape[1] == channels:
        return simple
    return simple + variational_term(schedule, eps.detach(), output[:, channels:], start, noisy, t)


def variational_term(
    schedule: Schedule, eps: Tensor, variance: Tensor, start: Tensor, noisy: Tensor, t: Tensor
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits a dimension, `(b,)`; at t = 0 the discrete likelihood."""
    of_start, of_current = schedule.posterior_coefficients
    bar = schedule.alphas_cumprod
    predicted = take(1 / np.sqrt(bar), t, noisy) * noisy - take(np.sqrt(1 / bar - 1), t, noisy) * eps
    true_mean = take(of_start, t, noisy) * start + take(of_current, t, noisy) * noisy
    mean = take(of_start, t, noisy) * predicted + take(of_current, t, noisy) * noisy
    true_log = take(schedule.posterior_log_variance_clipped, t, noisy)
    share = (variance + 1) / 2
    log_variance = share * take(np.log(schedule.betas), t, noisy) + (1 - share) * true_log
    divergence = 0.5 * (
        -1 + log_variance - true_log + torch.exp(true_log - log_variance)
        + (true_mean - mean) ** 2 * torch.exp(-log_variance)
    )  # fmt: skip
    likelihood = -discrete_log_likelihood(start, mean, 0.5 * log_variance)
    chosen = torch.where((t == 0)[:, None], likelihood.flatten(1), divergence.flatten(1))
    return chosen.mean(1) / math.log(2.0)


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels scaled to [-1, 1] under a Gaussian, elementwise (Ho et al. 2020, Eq. 13)."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + 1 / 255))
    lower = _normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    first, last = torch.log(upper.clamp(min=1e-12)), torch.log((1 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation that guided-diffusion trains with.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
