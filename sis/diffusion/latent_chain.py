# SPDX-License-Identifier: Apache-2.0
"""Latent diffusion's side of a chain: guidance in one network call, and starts from a noised prior (SCP-Diff)."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sis.diffusion.denoiser import Denoiser, Prediction, mixed
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule

Network = TypeVar("Network", bound=nn.Module)


class Eps(Protocol):
    """A network that predicts noise `(b, c, h, w)` from x_t, t `(b,)`, embedded prompts and embedded hints."""

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor | None, /) -> Tensor: ...


def batched_guided(
    network: Eps,
    context: Tensor,
    negative: Tensor,
    hint: Tensor | None,
    scale: float,
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """Classifier-free guidance over prompts with both branches in one call; the hint is in both of them.

    Args:
        context, negative: embedded prompts of the branches, `(b, tokens, width)`.
        hint: embedded hints `(b, ...)`, computed once for all steps; None for a network without.
        scale: 1 is no guidance: then the negative branch is not computed.
        dtype: what the network works in; everything outside it is float32.

    The denoiser takes x_t `(b, c, h, w)` and t `(b,)`.
    """
    alone = scale == 1.0
    texts = (context if alone else torch.cat([context, negative])).to(dtype)
    hints = None if hint is None else (hint if alone else torch.cat([hint, hint])).to(dtype)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        if alone:
            return Prediction(network(x.to(dtype), t, texts, hints).float(), None)
        both = network(torch.cat([x, x]).to(dtype), torch.cat([t, t]), texts, hints).float()
        conditional, null = both.chunk(2)
        return mixed(Prediction(conditional, None), Prediction(null, None), scale)

    return denoise


def in_type(network: Network, dtype: torch.dtype) -> Network:
    """The network in another floating-point type: a copy, or the network itself where it has that type already."""
    if all(value.dtype == dtype for value in network.parameters()):
        return network
    return copy.deepcopy(network).to(dtype)


def noised_prior(schedule: Schedule, level: int, mean: Tensor, std: Tensor, noise: Noise) -> Tensor:
    """x_muT `(b, c, h, w)`: a sample of the prior, noised to index `level` of the full schedule (SCP-Diff, Eq. 6).

    x_prior = mean + std * e_1; x_muT = sqrt(alpha-bar) x_prior + sqrt(1 - alpha-bar) e_2. Both noises are keyed, under
    "prior" and "start".

    Args:
        mean, std: of the prior at every token and channel, `(b, c, h, w)`.
    """
    shape = tuple(mean.shape[1:])
    x_prior = mean + std * noise.normal("prior", 0, shape)
    t = torch.full((len(mean),), level, device=mean.device)
    return schedule.q_sample(x_prior, t, noise.normal("start", 0, shape))
