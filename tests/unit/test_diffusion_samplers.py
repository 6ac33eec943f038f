# SPDX-License-Identifier: Apache-2.0
"""Samplers against facts that follow from their equations by hand: perfect denoisers, exact solutions, their noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from two_starts import NOISE, START

from sis.diffusion import gaussians, samplers
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule, linear


def perfect(schedule: Schedule, start: Tensor, variance: float | None = None) -> Denoiser:
    """A denoiser that knows x_0."""
    bar = torch.from_numpy(schedule.alphas_cumprod)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        level = bar[t].reshape(-1, 1, 1, 1)
        eps = ((x.double() - level.sqrt() * start.double()) / (1 - level).sqrt()).float()
        return Prediction(eps, None if variance is None else torch.full_like(x, variance))

    return denoise


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_ddim_with_a_perfect_denoiser_recovers_the_image(steps: int, eta: float) -> None:
    full = linear(50)
    x = samplers.start_noise(NOISE, (3, 4, 4))
    found = samplers.ddim(perfect(full, START), full.respaced(steps), x, NOISE, eta)
    torch.testing.assert_close(found, START, atol=2e-3, rtol=0)


@pytest.mark.parametrize("variance", [None, -1.0, 1.0])
def test_ddpm_with_a_perfect_denoiser_recovers_the_image(variance: float | None) -> None:
    full = linear(50)
    x = samplers.start_noise(NOISE, (3, 4, 4))
    found = samplers.ddpm(perfect(full, START, variance), full.respaced(10), x, NOISE)
    torch.testing.assert_close(found, START, atol=2e-3, rtol=0)


def test_the_variance_interpolates_between_posterior_and_beta() -> None:
    # Two chain steps; the only noise enters at the upper one with exp(0.5 log variance).
    chain = linear(50).respaced(2)
    x = torch.zeros(2, 3, 4, 4)
    zero = torch.zeros_like(x)
    seen: list[Tensor] = []

    def denoiser(share: float) -> Denoiser:
        def denoise(x: Tensor, t: Tensor) -> Prediction:
            seen.append(x)
            return Prediction(zero, torch.full_like(x, share))

        return denoise

    spreads = []
    for share in (-1.0, 0.0, 1.0):
        seen.clear()
        samplers.ddpm(denoiser(share), chain, x, NOISE)
        spreads.append(seen[1] / NOISE.normal("ddpm", int(chain.timesteps[1]), (3, 4, 4)))
    expected = [chain.posterior_variance[1], math.sqrt(chain.posterior_variance[1] * chain.betas[1]), chain.betas[1]]
    for spread, variance in zip(spreads, expected, strict=True):
        torch.testing.assert_close(spread, torch.full_like(spread, math.sqrt(variance)), rtol=1e-4, atol=0)


def test_a_variance_that_is_not_learned_is_the_posteriors_or_beta() -> None:
    chain, entered = linear(50).respaced(2), []

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        entered.append(x)
        return Prediction(torch.zeros_like(x), None)

    for kind in ("learned", "large"):
        samplers.ddpm(denoise, chain, torch.zeros(2, 3, 4, 4), NOISE, variance=kind)
    noise = NOISE.normal("ddpm", int(chain.timesteps[1]), (3, 4, 4))
    for spread, variance in ((entered[1], chain.posterior_variance[1]), (entered[3], chain.betas[1])):
        torch.testing.assert_close(spread, noise * math.sqrt(variance), rtol=1e-4, atol=0)


def test_a_reverse_step_is_the_posterior_under_the_predicted_image() -> None:
    schedule, t, x = (
        linear(50),
        torch.tensor([30, 2]),
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    eps = 0.3 * x
    mean, log_variance, start = samplers.reverse(schedule, Prediction(eps, None), x, t, variance="small")
    assert start.abs().max() <= 1
    torch.testing.assert_close(mean, gaussians.posterior_mean(schedule, start, x, t))
    expected = schedule.posterior_log_variance_clipped[t.numpy()]
    np.testing.assert_allclose(log_variance.flatten(), expected, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
def test_every_sampler_ends_with_the_channel_statistics_that_it_was_given(sampler: str) -> None:
    chain, wanted = linear(50).respaced(4), torch.tensor([[0.0, 0.2, -0.1], [0.3, 0.2, 0.5]])
    x = samplers.start_noise(NOISE, (3, 8, 8))

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(0.5 * x, None)

    if sampler == "dpm_solver":
        found = samplers.dpm_solver(denoise, chain, x, statistics=wanted)
    else:
        found = getattr(samplers, sampler)(denoise, chain, x, NOISE, statistics=wanted)
    # The last step of each is the predicted image, but for ddim's and ddpm's tiny share of x.
    torch.testing.assert_close(found.mean((2, 3)), wanted[0].expand(2, 3), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), wanted[1].expand(2, 3), atol=0.02, rtol=0)


def test_the_denoiser_is_asked_with_steps_of_the_full_schedule() -> None:
    asked: list[int] = []

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        asked.append(int(t[0]))
        return Prediction(torch.zeros_like(x), None)

    chain = linear(50).respaced(5)
    for sampler in (samplers.ddpm, samplers.ddim):
        asked.clear()
        sampler(denoise, chain, torch.zeros(2, 1, 2, 2), NOISE)
        assert asked == chain.timesteps[::-1].tolist()
    asked.clear()
    samplers.dpm_solver(denoise, chain, torch.zeros(2, 1, 2, 2))
    assert asked == chain.timesteps[::-1].tolist(), "one evaluation a step"


def test_predicted_images_are_clipped_only_when_asked() -> None:
    schedule, index = linear(50), torch.tensor([49, 49])
    x, eps = torch.full((2, 1, 1, 1), 3.0), torch.zeros(2, 1, 1, 1)
    assert samplers.predict_start(schedule, x, index, eps, clip=True).max() == 1
    assert samplers.predict_start(schedule, x, index, eps, clip=False).min() > 1


def test_ddim_of_one_run_is_deterministic_and_eta_brings_noise() -> None:
    full = linear(50)

    def half(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(0.5 * x, None)

    x = samplers.start_noise(NOISE, (3, 4, 4))
    other = Noise(1, NOISE.keys)
    assert torch.equal(samplers.ddim(half, full, x, NOISE), samplers.ddim(half, full, x, other))
    assert not torch.equal(samplers.ddim(half, full, x, NOISE, 1.0), samplers.ddim(half, full, x, other, 1.0))


def gaussian_ode(start_mean: float, deviation: float, entries: int) -> tuple[Schedule, Denoiser, list[Tensor]]:
    """A chain whose log signal-to-noise ratio grows evenly, and the exact denoiser of pixels N(mean, deviation^2).

    Also the list into which the denoiser puts what it is asked.
    """
    level = np.linspace(3, -3, entries)  # of the clean end first
    bar = 1 / (1 + np.exp(-2 * level))
    chain = Schedule(1 - bar / np.append(1.0, bar[:-1]), np.arange(entries))
    asked: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        asked.append(x)
        alpha, variance = math.sqrt(bar[int(t[0])]), 1 - bar[int(t[0])]
        return Prediction(math.sqrt(variance) * (x - alpha * start_mean) / (alpha**2 * deviation**2 + variance), None)

    return chain, denoise, asked


@pytest.mark.parametrize(("order", "least"), [(1, 0.9), (2, 1.8)])
def test_dpm_solver_converges_to_the_solution_of_the_ode_with_its_order(order: int, least: float) -> None:
    # Of pixels N(m, s^2) the probability-flow ODE keeps (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2).
    m, s, errors = 0.3, 0.5, []
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    for entries in (21, 41, 81):
        chain, denoise, asked = gaussian_ode(m, s, entries)
        bar = chain.alphas_cumprod
        samplers.dpm_solver(denoise, chain, x, clip=False, order=order)
        spread = np.sqrt(bar * s**2 + 1 - bar)
        exact = math.sqrt(bar[0]) * m + spread[0] / spread[-1] * (x - math.sqrt(bar[-1]) * m)
        errors.append((asked[-1] - exact).abs().max().item())  # where the lowest noise level is reached
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(rates) > least and max(rates) < order + 0.5, (errors, rates)


def test_dpm_solver_of_order_one_is_ddim_without_noise() -> None:
    full, x = linear(50), samplers.start_noise(NOISE, (3, 4, 4))

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(torch.tanh(0.8 * x), None)

    for clip in (True, False):
        one = samplers.dpm_solver(denoise, full.respaced(7), x, clip, order=1)
        torch.testing.assert_close(
            one, samplers.ddim(denoise, full.respaced(7), x, NOISE, 0.0, clip), rtol=1e-5, atol=1e-5
        )
    assert not torch.allclose(samplers.dpm_solver(denoise, full.respaced(7), x), one, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_dpm_solver_with_a_perfect_denoiser_recovers_the_image(steps: int) -> None:
    full = linear(50)
    x = samplers.start_noise(NOISE, (3, 4, 4))
    found = samplers.dpm_solver(perfect(full, START), full.respaced(steps), x)
    torch.testing.assert_close(found, START, atol=2e-3, rtol=0)


def test_dpm_solver_ignores_the_variance() -> None:
    full, x = linear(50), samplers.start_noise(NOISE, (3, 4, 4))
    one, two = (samplers.dpm_solver(perfect(full, START, v), full.respaced(5), x) for v in (None, 1.0))
    assert torch.equal(one, two)
