# SPDX-License-Identifier: Apache-2.0
"""Noise schedules and what follows from them (Ho et al. 2020; Nichol & Dhariwal 2021 for respacing and variance)."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.errors import SisError


@dataclass(frozen=True)
class Schedule:
    """A chain of noise levels.

    betas: float64 `(n,)`; timesteps: int64 `(n,)`, the step of the full chain that each entry stands for (the network
    was trained on those). before: alpha-bar of what the first entry leads to; 1 is the clean picture, latent diffusion
    stops a little above it (see `leading`).
    """

    betas: NDArray[np.float64]
    timesteps: NDArray[np.int64]
    before: float = 1.0

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Share of signal variance left at each step, alpha-bar."""
        return self.before * np.cumprod(1.0 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_cumprod_prev(self) -> NDArray[np.float64]:
        return np.concatenate((np.full(1, self.before), self.alphas_cumprod[:-1]))

    @cached_property
    def posterior_variance(self) -> NDArray[np.float64]:
        """beta-tilde: variance of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> NDArray[np.float64]:
        """log beta-tilde with the first entry (which is log 0) replaced by the second."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1] if len(variance) > 1 else self.betas[0], variance[1:]))

    @cached_property
    def large_log_variance(self) -> NDArray[np.float64]:
        """log beta with the first entry replaced by the second of beta-tilde: the larger choice of Ho et al."""
        return np.log(np.append(np.exp(self.posterior_log_variance_clipped[0]), self.betas[1:]))

    @cached_property
    def posterior_coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        bar, prev = self.alphas_cumprod, self.alphas_cumprod_prev
        of_start = self.betas * np.sqrt(prev) / (1.0 - bar)
        return of_start, (1.0 - prev) * np.sqrt(1.0 - self.betas) / (1.0 - bar)

    def respaced(self, steps: int | str) -> Schedule:
        """Keep some steps; alpha-bar at the kept steps is unchanged.

        Args:
            steps: 25 or "25": so many, evenly spaced, first and last included; "10,15,20": so many of each equal
                section; "ddim25": so many at a whole stride from the first. Raises SisError where there are none such.
        """
        return self._keeping(_kept(len(self), str(steps)), self.before)

    def leading(self, steps: int, exact: bool = True) -> Schedule:
        """Keep 1, 1 + stride, 1 + 2 stride, ... with stride = n // steps, as latent diffusion's DDIM does.

        The chain ends at alpha-bar of step 0, which it does not visit ("set_alpha_to_one: false", "steps_offset: 1").

        Args:
            steps: how many; of 1000, 20 gives 1, 51, ..., 951.
            exact: as diffusers' spacing "leading". False: as the authors of latent diffusion, who go on to the end of
                the schedule, so that a number that does not divide n gives more steps than asked for (30 of 1000: 31).

        Raises SisError where there are no such steps.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise SisError(f"cannot keep {steps} of {total} diffusion steps")
        stride = total // steps
        kept = list(range(1, total + 1, stride))[: steps if exact else None]
        if kept[-1] >= total:
            what = f"{steps} steps of {stride} from step 1 go beyond the last of {total} diffusion steps"
            raise SisError(what, fix="take a number that leaves room, as 20 or 50 of 1000")
        return self._keeping(kept, float(self.alphas_cumprod[0]))

    def up_to(self, count: int) -> Schedule:
        """The first `count` entries: where a chain is run that starts below the full noise."""
        return Schedule(self.betas[:count], self.timesteps[:count], self.before)

    def _keeping(self, kept: list[int], before: float) -> Schedule:
        bar = self.alphas_cumprod[kept]
        return Schedule(1.0 - bar / np.append(before, bar[:-1]), self.timesteps[kept], before)

    def q_sample(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise for indices t `(b,)` (SDM, Eq. 2)."""
        bar = self.alphas_cumprod
        return take(np.sqrt(bar), t, start) * start + take(np.sqrt(1.0 - bar), t, start) * noise


def _kept(total: int, steps: str) -> list[int]:
    """Indices of the steps that stay, ascending."""
    fault = SisError(f"cannot keep {steps} of {total} diffusion steps")
    if not re.fullmatch(r"(ddim)?\d+|\d+(,\d+)+", steps):
        raise fault
    if steps.startswith("ddim"):
        strides = [s for s in range(1, total + 1) if len(range(0, total, s)) == int(steps[4:])]
        if not strides:
            raise fault
        return list(range(0, total, strides[0]))
    counts, kept, start = [int(n) for n in steps.split(",")], [], 0
    for number, count in enumerate(counts):
        size = total // len(counts) + (number < total % len(counts))
        if count > size:
            raise fault
        # Strides are added up as in the published code; rounding multiples of them would move some steps by one.
        strides = [0.0, *[(size - 1) / max(1, count - 1)] * (count - 1)][:count]
        kept += [start + round(place) for place in itertools.accumulate(strides)]
        start += size
    if not kept:
        raise fault
    return kept


def named(name: Literal["linear", "cosine"], steps: int) -> Schedule:
    """The full schedule of a name."""
    return linear(steps) if name == "linear" else cosine(steps)


def linear(steps: int = 1000) -> Schedule:
    """The linear schedule from 1e-4 to 0.02 at 1000 steps, scaled for other lengths.

    Raises SisError for 20 steps or fewer, whose last scaled beta would leave no signal at all.
    """
    if steps <= 20:
        raise SisError(f"a linear schedule needs more than 20 steps, found {steps}")
    scale = 1000 / steps
    return Schedule(np.linspace(scale * 1e-4, scale * 0.02, steps), np.arange(steps))


def scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Schedule:
    """The schedule of latent diffusion (Stable Diffusion): square roots of beta rise evenly from `first` to `last`."""
    return Schedule(np.linspace(first**0.5, last**0.5, steps) ** 2, np.arange(steps))


def cosine(steps: int = 1000) -> Schedule:
    """The cosine schedule: alpha-bar falls as cos^2, no beta above 0.999 (Nichol & Dhariwal 2021, Eq. 17)."""
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    bar = np.cos(angle) ** 2
    return Schedule(np.minimum(1.0 - bar[1:] / bar[:-1], 0.999), np.arange(steps))


def take(values: NDArray[np.float64], t: Tensor, like: Tensor) -> Tensor:
    """Entries of a schedule array at indices t `(b,)`, shaped to multiply `like` `(b, ...)`, float32."""
    chosen = torch.from_numpy(values).to(like.device)[t].float()
    return chosen.reshape(-1, *[1] * (like.ndim - 1))
