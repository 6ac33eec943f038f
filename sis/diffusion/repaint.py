# SPDX-License-Identifier: Apache-2.0
"""RePaint: draw a region anew, with everything around it held to a given picture (Lugmayr et al. 2022; SDM, Eq. 12)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.gaussians import Variance, predict_start
from sis.diffusion.noise import Noise
from sis.diffusion.samplers import reverse, start_noise
from sis.diffusion.schedule import Schedule, take
from sis.errors import SisError


@dataclass(frozen=True)
class Resampling:
    """How often the chain goes back, so that the new pixels can agree with the old ones (RePaint, Sec. 4.2).

    rounds: how often every stretch of the chain is gone through; 1 never goes back and is SDM's Eq. 12 as printed.
    jump: steps of a stretch. RePaint's own choice is 10 and 10; with jump 1 it is RePaint's Algorithm 1.
    """

    rounds: int = 10
    jump: int = 10


@dataclass(frozen=True)
class Step:
    """How a step goes down the chain: the options of `samplers.ddpm`, and of `samplers.ddim` where eta is a number.

    eta: None for ancestral steps (SDM, RePaint).
    """

    clip: bool = True
    variance: Variance = "learned"
    statistics: Tensor | None = None
    eta: float | None = None


def journey(steps: int, how: Resampling) -> list[int]:
    """The chain indices of the states in the order of their visits, from `steps - 1` (all noise) to -1 (x_0).

    A move down is one network evaluation, a move up adds one step of noise. Stretches begin at 0, jump, 2 jump, ...;
    the highest one begins below `steps - jump`, as in RePaint's released code.
    Raises SisError for rounds or jumps below 1, and for a chain too short to go back in.
    """
    if how.rounds < 1 or how.jump < 1:
        raise SisError(f"RePaint needs at least one round and a jump of one step, found {how.rounds} and {how.jump}")
    if how.rounds > 1 and how.jump >= steps:
        fix = "use a smaller jump, more steps, or one round"
        raise SisError(f"a chain of {steps} steps is too short to go back {how.jump}", fix=fix)
    left = dict.fromkeys(range(0, steps - how.jump, how.jump), how.rounds - 1)
    states = [steps - 1]
    while states[-1] >= 0:
        here = states[-1]
        if left.get(here):
            left[here] -= 1
            states += range(here + 1, here + how.jump + 1)
        else:
            states.append(here - 1)
    return states


def evaluations(steps: int, how: Resampling) -> int:
    """How many times `repaint` asks the denoiser."""
    return sum(after < before for before, after in pairwise(journey(steps, how)))


def repaint(
    denoiser: Denoiser,
    schedule: Schedule,
    original: Tensor,
    edited: Tensor,
    noise: Noise,
    how: Resampling,
    rule: Step,
) -> Tensor:
    """Draw the edited region step by step; outside it x_t is the original's before every network call (Eq. 12).

    Args:
        denoiser: the network with the condition of the edited label map, and guidance.
        schedule: full or respaced chain.
        original: x_0 `(b, c, h, w)` in [-1, 1].
        edited: bool, broadcasting with it: m of Eq. 12, true where pixels are drawn.
        noise: keyed noise: x_T as every sampler's, then draws of purposes of its own, by step and round.
        how: rounds and jump.
        rule: what a step down is.

    Returns:
        x_0 `(b, c, h, w)`; outside the region exactly `original`.
    """
    shape = tuple(original.shape[1:])
    x, rounds = start_noise(noise, shape), Counter[str]()

    def draw(purpose: str, index: int) -> Tensor:
        """The next draw at a step: a step that comes again has another round in its key."""
        step = int(schedule.timesteps[index])
        rounds[f"{purpose} {step}"] += 1
        return noise.normal(f"repaint {purpose} {rounds[f'{purpose} {step}'] - 1}", step, shape)

    for index, after in pairwise(journey(len(schedule), how)):
        i = torch.full((x.shape[0],), max(index, after), device=x.device)
        if after > index:
            # q(x_t | x_{t-1}): one step of noise, by which new and old pixels mix in what the network sees next.
            x = take(np.sqrt(1 - schedule.betas), i, x) * x + take(np.sqrt(schedule.betas), i, x) * draw("back", after)
            continue
        x = torch.where(edited, x, schedule.q_sample(original, i, draw("known", index)))
        prediction = denoiser(x, torch.full_like(i, int(schedule.timesteps[index])))
        mean, deviation = _down(schedule, prediction, x, i, rule)
        x = mean + deviation * draw("step", index) if index else mean
    return torch.where(edited, x, original)


def _down(schedule: Schedule, prediction: Prediction, x: Tensor, index: Tensor, rule: Step) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_{t-1}, as in `samplers.ddpm` or `samplers.ddim`."""
    if rule.eta is None:
        mean, log_variance, _ = reverse(schedule, prediction, x, index, rule.clip, rule.variance, rule.statistics)
        return mean, torch.exp(0.5 * log_variance)
    bar, prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = rule.eta * np.sqrt((1 - prev) / (1 - bar)) * np.sqrt(1 - bar / prev)
    start = predict_start(schedule, x, index, prediction.eps, rule.clip, rule.statistics)
    eps = (take(1 / np.sqrt(bar), index, x) * x - start) / take(np.sqrt(1 / bar - 1), index, x)
    direction = take(np.sqrt(np.maximum(1 - prev - sigma**2, 0.0)), index, x)
    return take(np.sqrt(prev), index, x) * start + direction * eps, take(sigma, index, x)
