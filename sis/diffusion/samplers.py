# SPDX-License-Identifier: Apache-2.0
"""Samplers: each a pure function of a denoiser, a schedule and keyed noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.denoiser import Denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule, take


def start_noise(noise: Noise, shape: tuple[int, ...]) -> Tensor:
    """x_T: standard normal `(b, *shape)`."""
    return noise.normal("start", 0, shape)


def ddpm(denoiser: Denoiser, schedule: Schedule, x: Tensor, noise: Noise, clip: bool = True) -> Tensor:
    """Ancestral sampling with the learned (or else the posterior) variance (SDM, Algorithm 2).

    Args:
        denoiser: the network, with its condition and guidance.
        schedule: full or respaced chain.
        x: x_T `(b, c, h, w)`.
        noise: keyed noise; one draw a step, also unused at the last one.
        clip: clip the predicted x_0 to [-1, 1].

    Returns:
        x_0 `(b, c, h, w)`.
    """
    of_start, of_current = schedule.posterior_coefficients
    log_beta, log_posterior = np.log(schedule.betas), schedule.posterior_log_variance_clipped
    for index in reversed(range(len(schedule))):
        i = torch.full((x.shape[0],), index, device=x.device)
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        start = predict_start(schedule, x, i, prediction.eps, clip)
        mean = take(of_start, i, x) * start + take(of_current, i, x) * x
        log_variance = take(log_posterior, i, x)
        if prediction.variance is not None:
            share = (prediction.variance + 1) / 2
            log_variance = share * take(log_beta, i, x) + (1 - share) * log_variance
        step = noise.normal("ddpm", int(schedule.timesteps[index]), tuple(x.shape[1:]))
        x = mean + torch.exp(0.5 * log_variance) * step if index else mean
    return x


def ddim(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, noise: Noise, eta: float = 0.0, clip: bool = True
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12): deterministic for eta = 0, ancestral noise for eta = 1; shapes as in `ddpm`."""
    bar, prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt((1 - prev) / (1 - bar)) * np.sqrt(1 - bar / prev)
    direction = np.sqrt(np.maximum(1 - prev - sigma**2, 0.0))
    for index in reversed(range(len(schedule))):
        i = torch.full((x.shape[0],), index, device=x.device)
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        start = predict_start(schedule, x, i, prediction.eps, clip)
        eps = (take(1 / np.sqrt(bar), i, x) * x - start) / take(np.sqrt(1 / bar - 1), i, x)
        x = take(np.sqrt(prev), i, x) * start + take(direction, i, x) * eps
        if eta and index:
            step = noise.normal("ddim", int(schedule.timesteps[index]), tuple(x.shape[1:]))
            x = x + take(sigma, i, x) * step
    return x


def predict_start(schedule: Schedule, x: Tensor, index: Tensor, eps: Tensor, clip: bool) -> Tensor:
    """The x_0 that `eps` implies at chain indices `(b,)`."""
    bar = schedule.alphas_cumprod
    start = take(1 / np.sqrt(bar), index, x) * x - take(np.sqrt(1 / bar - 1), index, x) * eps
    return start.clamp(-1, 1) if clip else start
