# SPDX-License-Identifier: Apache-2.0
"""Noise schedules and what follows from them (Ho et al. 2020; Nichol & Dhariwal 2021 for respacing and variance)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.errors import SisError


@dataclass(frozen=True)
class Schedule:
    """A chain of noise levels.

    betas: float64 `(n,)`; timesteps: int64 `(n,)`, the step of the full chain that each entry stands for (the network
    was trained on those).
    """

    betas: NDArray[np.float64]
    timesteps: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> NDArray[np.float64]:
        """Share of signal variance left at each step, alpha-bar."""
        return np.cumprod(1.0 - self.betas, dtype=np.float64)

    @property
    def alphas_cumprod_prev(self) -> NDArray[np.float64]:
        return np.concatenate((np.ones(1), self.alphas_cumprod[:-1]))

    @property
    def posterior_variance(self) -> NDArray[np.float64]:
        """beta-tilde: variance of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @property
    def posterior_log_variance_clipped(self) -> NDArray[np.float64]:
        """log beta-tilde with the first entry (which is log 0) replaced by the second."""
        variance = self.posterior_variance
        return np.log(np.append(variance[1] if len(variance) > 1 else self.betas[0], variance[1:]))

    @property
    def posterior_coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        bar, prev = self.alphas_cumprod, self.alphas_cumprod_prev
        of_start = self.betas * np.sqrt(prev) / (1.0 - bar)
        return of_start, (1.0 - prev) * np.sqrt(1.0 - self.betas) / (1.0 - bar)

    def respaced(self, steps: int) -> Schedule:
        """Keep `steps` evenly spaced steps, first and last included; alpha-bar at the kept steps is unchanged."""
        total = len(self)
        if not 1 <= steps <= total:
            raise SisError(f"cannot keep {steps} of {total} diffusion steps")
        stride = (total - 1) / (steps - 1) if steps > 1 else 1.0
        kept = np.unique([round(i * stride) for i in range(steps)])
        bar = self.alphas_cumprod[kept]
        return Schedule(1.0 - bar / np.append(1.0, bar[:-1]), self.timesteps[kept])

    def q_sample(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise for indices t `(b,)` (SDM, Eq. 2)."""
        bar = self.alphas_cumprod
        return take(np.sqrt(bar), t, start) * start + take(np.sqrt(1.0 - bar), t, start) * noise


def linear(steps: int = 1000) -> Schedule:
    """The linear schedule from 1e-4 to 0.02 at 1000 steps, scaled for other lengths.

    Raises SisError for 20 steps or fewer, whose last scaled beta would leave no signal at all.
    """
    if steps <= 20:
        raise SisError(f"a linear schedule needs more than 20 steps, found {steps}")
    scale = 1000 / steps
    return Schedule(np.linspace(scale * 1e-4, scale * 0.02, steps), np.arange(steps))


def take(values: NDArray[np.float64], t: Tensor, like: Tensor) -> Tensor:
    """Entries of a schedule array at indices t `(b,)`, shaped to multiply `like` `(b, ...)`, float32."""
    chosen = torch.from_numpy(values).to(like.device)[t].float()
    return chosen.reshape(-1, *[1] * (like.ndim - 1))
