# SPDX-License-Identifier: Apache-2.0
"""The denoiser call: the one interface between networks and samplers, and guidance composed over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """A network's answer at one step: the noise `(b, c, h, w)` and the variance interpolation in [-1, 1], if learned."""

    eps: Tensor
    variance: Tensor | None


#: (x_t `(b, c, h, w)`, t `(b,)` of the full schedule) -> Prediction
Denoiser = Callable[[Tensor, Tensor], Prediction]


def network_denoiser(network: nn.Module, label: Tensor, learn_sigma: bool) -> Denoiser:
    """Bind a network to its condition."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        out = network(x, t, label)
        if not learn_sigma:
            return Prediction(out, None)
        eps, variance = out.chunk(2, dim=1)
        return Prediction(eps, variance)

    return denoise


def guided(conditional: Denoiser, null: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: eps = eps_null + scale * (eps_cond - eps_null); scale 1 is no guidance.

    This is SDM's Algorithm 2 and code. The paper's Eq. 11 as printed, eps_cond + s (eps_cond - eps_null), equals it
    with scale = s + 1. The variance is the conditional one.
    """
    if scale == 1.0:
        return conditional

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        with_label, without = conditional(x, t), null(x, t)
        return Prediction(without.eps + scale * (with_label.eps - without.eps), with_label.variance)

    return denoise
