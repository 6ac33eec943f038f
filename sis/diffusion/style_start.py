# SPDX-License-Identifier: Apache-2.0
"""Image-to-image sampling: a chain that starts from a noised photograph instead of pure noise (IIDM, Eq. 1).

Where it starts is a share of the full schedule, never a bare index: index 320 of a chain of 500 is step 640 of 1000,
and what is left of the photograph there has a fifth of the amplitude that is left at step 320.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sis.diffusion import samplers
from sis.diffusion.denoiser import Denoiser
from sis.diffusion.gaussians import Variance
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule
from sis.errors import SisError


class Start(NamedTuple):
    """Where a photograph enters a chain.

    noised: index of the chain whose noise level it gets. calls: network evaluations, at indices calls - 1, ..., 0.
    """

    noised: int
    calls: int


@dataclass(frozen=True)
class StepRule:
    """How a step goes down the chain: options of `samplers.ddim` or `samplers.ddpm`."""

    sampler: Literal["ddim", "ddpm"] = "ddim"
    eta: float = 0.0
    clip: bool = False
    variance: Variance = "learned"


@dataclass(frozen=True)
class RoundNoise(Noise):
    """The noise of one round of refinement: other bits than every other round's, at the same step and purpose."""

    number: int = 0

    def bits(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        return super().bits(f"round {self.number} {purpose}", step, shape)


def of_round(noise: Noise, number: int) -> RoundNoise:
    """The noise of a round."""
    return RoundNoise(noise.seed, noise.keys, noise.device, number)


def start_at(chain: Schedule, fraction: float, total: int, late: bool) -> Start:
    """The start for a share of the schedule: all steps of the chain below it are gone through.

    Args:
        chain: full or respaced.
        fraction: share in (0, 1] of the full schedule, e.g. 0.64 for step 640 of 1000.
        total: steps of the full schedule.
        late: noise the photograph to one index above the first evaluation's, as IIDM's released code does; else to
            the same one.

    Raises SisError for a share below the chain's first step, and for one that leaves no index above.
    """
    calls = sum(int(t) < round(fraction * total, 6) for t in chain.timesteps)
    known = f"a chain of {len(chain)} steps from {chain.timesteps[0]} to {chain.timesteps[-1]}"
    if not calls:
        raise SisError(f"a start at {fraction:g} of {total} steps lies below {known}", fix="use a larger share")
    if late and calls == len(chain):
        raise SisError(f"a start at {fraction:g} of {total} steps lies above {known}", fix="use a smaller share")
    return Start(calls if late else calls - 1, calls)


def noised(chain: Schedule, latents: Tensor, start: Start, noise: Noise) -> Tensor:
    """z_T of Eq. 1 `(b, c, h, w)`: the photograph's latent at the start's noise level."""
    index = torch.full((len(latents),), start.noised, device=latents.device)
    return chain.q_sample(latents, index, noise.normal("style start", 0, tuple(latents.shape[1:])))


def denoised(denoiser: Denoiser, chain: Schedule, z: Tensor, calls: int, noise: Noise, rule: StepRule) -> Tensor:
    """z_0 `(b, c, h, w)` from the last `calls` steps of a chain."""
    below = chain.up_to(calls)
    if rule.sampler == "ddim":
        return samplers.ddim(denoiser, below, z, noise, rule.eta, rule.clip)
    return samplers.ddpm(denoiser, below, z, noise, rule.clip, rule.variance)
