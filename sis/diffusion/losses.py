# SPDX-License-Identifier: Apache-2.0
"""Training objective of SDM: L_simple plus the variational term of the learned variance (SDM, Eqs. 3-5)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.denoiser import noise_of_velocity
from sis.diffusion.gaussians import (
    discrete_log_likelihood,
    normal_kl,
    posterior_mean,
    predict_start,
    q_mean_variance,
    reverse_log_variance,
)
from sis.diffusion.schedule import Schedule, take


class Terms(NamedTuple):
    """L_simple and the variational term of each image, `(b,)`; the second is None where no variance is learned."""

    simple: Tensor
    variational: Tensor | None


def hybrid_loss(
    schedule: Schedule, output: Tensor, start: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, velocity: bool = False
) -> Tensor:
    """L_simple + lambda L_vlb for each image, `(b,)`; arguments as in `hybrid_terms`.

    The variational term is in bits a dimension for the single step t. The paper's lambda = 0.001 multiplies the sum
    over all 1000 steps, which is this term with weight 1.
    """
    simple, variational = hybrid_terms(schedule, output, start, noisy, t, noise, velocity)
    return simple if variational is None else simple + variational


def hybrid_terms(
    schedule: Schedule, output: Tensor, start: Tensor, noisy: Tensor, t: Tensor, noise: Tensor, velocity: bool = False
) -> Terms:
    """Both terms of the objective; the gradient of the variational one reaches the variance only.

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
        return Terms(simple, None)
    return Terms(simple, variational_term(schedule, eps.detach(), output[:, channels:], start, noisy, t))


def variational_term(
    schedule: Schedule, eps: Tensor, variance: Tensor, start: Tensor, noisy: Tensor, t: Tensor, clip: bool = False
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits a dimension, `(b,)`; at t = 0 the discrete likelihood.

    One term of the bound (DDPM, Eq. 5). clip: clip the predicted x_0 to [-1, 1], as when images are judged.
    """
    predicted = predict_start(schedule, noisy, t, eps, clip)
    mean = posterior_mean(schedule, predicted, noisy, t)
    log_variance = reverse_log_variance(schedule, noisy, t, variance)
    true_mean = posterior_mean(schedule, start, noisy, t)
    true_log = take(schedule.posterior_log_variance_clipped, t, noisy)
    divergence = normal_kl(true_mean, true_log, mean, log_variance)
    likelihood = -discrete_log_likelihood(start, mean, 0.5 * log_variance)
    chosen = torch.where((t == 0)[:, None], likelihood.flatten(1), divergence.flatten(1))
    return chosen.mean(1) / math.log(2.0)


def prior_term(schedule: Schedule, start: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, 1)) in bits a dimension, `(b,)`: the bound's term without parameters (DDPM, Eq. 5)."""
    last = torch.full((len(start),), len(schedule) - 1, device=start.device)
    mean, _, log_variance = q_mean_variance(schedule, start, last)
    zero = torch.zeros((), device=start.device)
    return normal_kl(mean, log_variance, zero, zero).flatten(1).mean(1) / math.log(2.0)
