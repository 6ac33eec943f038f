# SPDX-License-Identifier: Apache-2.0
"""The Gaussians of a diffusion chain as pure functions: forward process, posterior, variances, divergence, likelihood.

Equation numbers: DDPM is Ho et al. 2020, IDDPM is Nichol & Dhariwal 2021. Indices `t` count through the schedule that
is given, full or respaced.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.schedule import Schedule, take

#: Of a reverse step: as the network says, beta-tilde (the posterior's), or beta.
Variance = Literal["learned", "small", "large"]


def q_mean_variance(schedule: Schedule, start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `(b, c, h, w)`, variance and log variance `(b, 1, 1, 1)` of q(x_t | x_0) (DDPM, Eq. 4; SDM, Eq. 2)."""
    bar = schedule.alphas_cumprod
    mean = take(np.sqrt(bar), t, start) * start
    return mean, take(1.0 - bar, t, start), take(np.log(1.0 - bar), t, start)


def posterior_mean(schedule: Schedule, start: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0) `(b, c, h, w)` (DDPM, Eq. 7)."""
    of_start, of_current = schedule.posterior_coefficients
    return take(of_start, t, noisy) * start + take(of_current, t, noisy) * noisy


def predict_start(
    schedule: Schedule, x: Tensor, index: Tensor, eps: Tensor, clip: bool, statistics: Tensor | None = None
) -> Tensor:
    """The x_0 that the noise `eps` implies at chain indices `(b,)`: Eq. 4 of DDPM solved for x_0.

    clip: to [-1, 1]. statistics: see `with_statistics`; applied after the clipping.
    """
    bar = schedule.alphas_cumprod
    start = take(1 / np.sqrt(bar), index, x) * x - take(np.sqrt(1 / bar - 1), index, x) * eps
    start = start.clamp(-1, 1) if clip else start
    return start if statistics is None else with_statistics(start, statistics)


def with_statistics(start: Tensor, statistics: Tensor) -> Tensor:
    """Shift and scale every channel of every image to a mean and a standard deviation, in [-1, 1] units.

    An option of SDM's released code that none of its commands uses and the paper does not mention: it hides tints.

    Args:
        start: `(b, c, h, w)`.
        statistics: `(2, c)`, means and standard deviations (the unbiased ones).
    """
    deviation, mean = torch.std_mean(start, dim=(2, 3), keepdim=True)
    wanted = statistics.to(start)[..., None, None]
    return (start - mean) / deviation * wanted[1] + wanted[0]


def reverse_log_variance(
    schedule: Schedule, like: Tensor, t: Tensor, predicted: Tensor | None, kind: Variance = "learned"
) -> Tensor:
    """Log variance of p(x_{t-1} | x_t), broadcasting with `like` `(b, c, h, w)`.

    Args:
        predicted: the network's v in [-1, 1] `(b, c, h, w)`: log variance = s log beta + (1 - s) log beta-tilde with
            s = (v + 1) / 2 (IDDPM, Eq. 15). None where the network learns none.
        kind: `learned` uses `predicted`, and is `small` where there is none.
    """
    if kind == "large":
        return take(schedule.large_log_variance, t, like)
    lower = take(schedule.posterior_log_variance_clipped, t, like)
    if kind == "small" or predicted is None:
        return lower
    share = (predicted + 1) / 2
    return share * take(np.log(schedule.betas), t, like) + (1 - share) * lower


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other_mean, other_variance)) in nats, elementwise."""
    return 0.5 * (
        -1 + other_log_variance - log_variance + torch.exp(log_variance - other_log_variance)
        + (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    )  # fmt: skip


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels scaled to [-1, 1] under a Gaussian, elementwise (DDPM, Eq. 13)."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (centred + 1 / 255))
    lower = _normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    first, last = torch.log(upper.clamp(min=1e-12)), torch.log((1 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation that guided-diffusion trains with.
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
