# SPDX-License-Identifier: Apache-2.0
"""The denoiser call: the one interface between networks and samplers, and guidance composed over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from sis.diffusion.schedule import Schedule, take


class Prediction(NamedTuple):
    """A network's answer at one step: the noise `(b, c, h, w)` and the variance in [-1, 1], if learned."""

    eps: Tensor
    variance: Tensor | None


#: (x_t `(b, c, h, w)`, t `(b,)` of the full schedule) -> Prediction
Denoiser = Callable[[Tensor, Tensor], Prediction]


def network_denoiser(
    network: nn.Module, label: Tensor, learn_sigma: bool, velocity: Schedule | None = None
) -> Denoiser:
    """Bind a network to its condition.

    Args:
        network: called with (x_t, t, label).
        label: one-hot map `(b, k, h, w)`.
        learn_sigma: whether the second half of its channels is the variance interpolation.
        velocity: for a network that predicts v = sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x_0 (Salimans & Ho 2022):
            the full schedule, by which v is turned into noise. None for a network that predicts noise (SDM).
    """

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return prediction(network(x, t, label), x, t, learn_sigma, velocity)

    return denoise


def prediction(out: Tensor, x: Tensor, t: Tensor, learn_sigma: bool, velocity: Schedule | None) -> Prediction:
    """Read a network's output `(b, c or 2c, h, w)` at x_t; options as in `network_denoiser`."""
    first, variance = out.chunk(2, dim=1) if learn_sigma else (out, None)
    return Prediction(first if velocity is None else noise_of_velocity(velocity, first, x, t), variance)


def noise_of_velocity(schedule: Schedule, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise that a velocity implies at indices t `(b,)`: eps = sqrt(alpha-bar) v + sqrt(1 - alpha-bar) x_t."""
    bar = schedule.alphas_cumprod
    return take(np.sqrt(bar), t, x) * v + take(np.sqrt(1 - bar), t, x) * x


def guided(conditional: Denoiser, null: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: eps = eps_null + scale * (eps_cond - eps_null); scale 1 is no guidance.

    This is SDM's Algorithm 2 and code. The paper's Eq. 11 as printed, eps_cond + s (eps_cond - eps_null), equals it
    with scale = s + 1. The variance is the conditional one.
    """
    if scale == 1.0:
        return conditional

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return mixed(conditional(x, t), null(x, t), scale)

    return denoise


def mixed(conditional: Prediction, null: Prediction, scale: float) -> Prediction:
    """Two branches as one: see `guided`."""
    return Prediction(null.eps + scale * (conditional.eps - null.eps), conditional.variance)
