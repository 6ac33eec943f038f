# SPDX-License-Identifier: Apache-2.0
"""Samplers: each a pure function of a denoiser, a schedule and keyed noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.gaussians import Variance, posterior_mean, predict_start, reverse_log_variance
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule, take


class Reverse(NamedTuple):
    """p(x_{t-1} | x_t): its mean `(b, c, h, w)`, its log variance (broadcasting with it), and the x_0 behind it."""

    mean: Tensor
    log_variance: Tensor
    start: Tensor


def start_noise(noise: Noise, shape: tuple[int, ...]) -> Tensor:
    """x_T: standard normal `(b, *shape)`."""
    return noise.normal("start", 0, shape)


def reverse(
    schedule: Schedule,
    prediction: Prediction,
    x: Tensor,
    index: Tensor,
    clip: bool = True,
    variance: Variance = "learned",
    statistics: Tensor | None = None,
) -> Reverse:
    """The reverse step that a network's answer at x_t implies: the posterior under the predicted x_0 (DDPM, Eq. 11).

    Options as in `ddpm`; index: chain indices `(b,)`.
    """
    start = predict_start(schedule, x, index, prediction.eps, clip, statistics)
    log_variance = reverse_log_variance(schedule, x, index, prediction.variance, variance)
    return Reverse(posterior_mean(schedule, start, x, index), log_variance, start)


def ddpm(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    noise: Noise,
    clip: bool = True,
    variance: Variance = "learned",
    statistics: Tensor | None = None,
) -> Tensor:
    """Ancestral sampling (SDM, Algorithm 2; the standard posterior, as its code, not the step that it prints).

    Args:
        denoiser: the network, with its condition and guidance.
        schedule: full or respaced chain.
        x: x_T `(b, c, h, w)`.
        noise: keyed noise; one draw a step, also unused at the last one.
        clip: clip the predicted x_0 to [-1, 1].
        variance: of a step: learned (where nothing is learned: small), the posterior's (small), or beta (large).
        statistics: `(2, c)` means and standard deviations that every predicted x_0 gets; None leaves it alone.

    Returns:
        x_0 `(b, c, h, w)`.
    """
    for index in reversed(range(len(schedule))):
        i = torch.full((x.shape[0],), index, device=x.device)
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        mean, log_variance, _ = reverse(schedule, prediction, x, i, clip, variance, statistics)
        step = noise.normal("ddpm", int(schedule.timesteps[index]), tuple(x.shape[1:]))
        x = mean + torch.exp(0.5 * log_variance) * step if index else mean
    return x


def ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    noise: Noise,
    eta: float = 0.0,
    clip: bool = True,
    statistics: Tensor | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12): deterministic for eta = 0, ancestral noise for eta = 1; shapes as in `ddpm`."""
    bar, prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt((1 - prev) / (1 - bar)) * np.sqrt(1 - bar / prev)
    direction = np.sqrt(np.maximum(1 - prev - sigma**2, 0.0))
    for index in reversed(range(len(schedule))):
        i = torch.full((x.shape[0],), index, device=x.device)
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        start = predict_start(schedule, x, i, prediction.eps, clip, statistics)
        eps = (take(1 / np.sqrt(bar), i, x) * x - start) / take(np.sqrt(1 / bar - 1), i, x)
        x = take(np.sqrt(prev), i, x) * start + take(direction, i, x) * eps
        if sigma[index] > 0:  # also in the last step of a chain that does not end without noise
            step = noise.normal("ddim", int(schedule.timesteps[index]), tuple(x.shape[1:]))
            x = x + take(sigma, i, x) * step
    return x


def dpm_solver(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    clip: bool = True,
    statistics: Tensor | None = None,
    order: int = 2,
) -> Tensor:
    """DPM-Solver++(2M) of the probability-flow ODE (Lu et al. 2022b, Algorithm 2); shapes as in `ddpm`, no noise.

    One network evaluation a chain entry. The first step has order 1 for want of a past, and so has the last one, from
    the lowest noise level to none, where the solution is the predicted x_0 itself. The variance is not used.
    order: 2, or 1, which is DDIM with eta = 0.
    """
    bar = schedule.alphas_cumprod
    alpha, sigma = np.sqrt(bar), np.sqrt(1.0 - bar)
    level = np.log(alpha / sigma)  # lambda, half the log signal-to-noise ratio
    before: Tensor | None = None
    for index in reversed(range(len(schedule))):
        i = torch.full((x.shape[0],), index, device=x.device)
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        start = predict_start(schedule, x, i, prediction.eps, clip, statistics)
        if index == 0:
            return start
        step, towards = level[index - 1] - level[index], start
        if before is not None and order > 1:
            past = (level[index] - level[index + 1]) / step  # r, so many of this step's lengths ago
            towards = start + (start - before) * float(0.5 / past)
        shrink = sigma[index - 1] / sigma[index]
        x = float(shrink) * x - float(alpha[index - 1] * np.expm1(-step)) * towards
        before = start
    return x
