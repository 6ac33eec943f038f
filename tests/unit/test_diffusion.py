# SPDX-License-Identifier: Apache-2.0
"""Diffusion against facts that follow from its equations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sis.diffusion import losses, samplers
from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.schedule import Schedule, linear, take
from sis.errors import SisError

NOISE = Noise(0, (("a", 0), ("b", 0)))
START = NOISE.uniform("x0", 0, (3, 4, 4)) * 1.8 - 0.9


def perfect(schedule: Schedule, start: Tensor, variance: float | None = None) -> Denoiser:
    """A denoiser that knows x_0."""
    bar = torch.from_numpy(schedule.alphas_cumprod)

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        level = bar[t].reshape(-1, 1, 1, 1)
        eps = ((x.double() - level.sqrt() * start.double()) / (1 - level).sqrt()).float()
        return Prediction(eps, None if variance is None else torch.full_like(x, variance))

    return denoise


def test_the_published_schedule() -> None:
    schedule = linear(1000)
    assert schedule.betas[0] == 1e-4 and schedule.betas[-1] == 0.02
    assert schedule.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert len(schedule) == 1000 and schedule.timesteps.tolist() == list(range(1000))


@pytest.mark.parametrize("steps", [25, 50, 250, 1000])
def test_scaled_schedules_end_in_nearly_the_same_noise(steps: int) -> None:
    schedule = linear(steps)
    assert (np.diff(schedule.alphas_cumprod) < 0).all() and (schedule.betas < 1).all()
    assert schedule.alphas_cumprod[-1] < 1e-4


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_a_schedule_that_would_lose_all_signal_is_refused(steps: int) -> None:
    with pytest.raises(SisError, match="more than 20 steps"):
        linear(steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 99, 100])
def test_respacing_keeps_alpha_bar_and_both_ends(steps: int) -> None:
    full = linear(100)
    short = full.respaced(steps)
    np.testing.assert_allclose(short.alphas_cumprod, full.alphas_cumprod[short.timesteps], rtol=1e-9)
    assert len(short) == steps and (np.diff(short.timesteps) > 0).all()
    assert short.timesteps[0] == 0 and (steps == 1 or short.timesteps[-1] == 99)


def test_respacing_to_all_steps_changes_nothing() -> None:
    full = linear(100)
    np.testing.assert_allclose(full.respaced(100).betas, full.betas, rtol=1e-10)


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_impossible_respacings_are_refused(steps: int) -> None:
    with pytest.raises(SisError, match=f"cannot keep {steps} of 100"):
        linear(100).respaced(steps)


def test_posterior_coefficients_keep_a_noiseless_image() -> None:
    # The posterior's mean of x_t = sqrt(bar_t) x_0 is sqrt(bar_{t-1}) x_0: no noise in, no noise out.
    schedule = linear(100)
    of_start, of_current = schedule.posterior_coefficients
    found = of_start + of_current * np.sqrt(schedule.alphas_cumprod)
    np.testing.assert_allclose(found, np.sqrt(schedule.alphas_cumprod_prev), rtol=1e-12)


def test_posterior_variance_completes_the_forward_variance() -> None:
    # Var(x_{t-1} | x_0) = 1 - bar_{t-1} = beta-tilde + of_current^2 (1 - bar_t)
    schedule = linear(100)
    _, of_current = schedule.posterior_coefficients
    total = schedule.posterior_variance + of_current**2 * (1 - schedule.alphas_cumprod)
    np.testing.assert_allclose(total, 1 - schedule.alphas_cumprod_prev, rtol=1e-9, atol=1e-15)


def test_the_first_posterior_variance_is_zero_and_its_logarithm_is_the_second() -> None:
    schedule = linear(100)
    assert schedule.posterior_variance[0] == 0
    clipped = schedule.posterior_log_variance_clipped
    assert clipped[0] == clipped[1] == pytest.approx(math.log(schedule.posterior_variance[1]))
    assert np.isfinite(linear(100).respaced(1).posterior_log_variance_clipped).all()


def test_q_sample_mixes_signal_and_noise_by_alpha_bar() -> None:
    schedule = linear(50)
    t = torch.tensor([0, 49])
    ones, zeros = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    signal, noise = schedule.q_sample(ones, t, zeros), schedule.q_sample(zeros, t, ones)
    torch.testing.assert_close(signal**2 + noise**2, ones)
    np.testing.assert_allclose(signal.flatten() ** 2, schedule.alphas_cumprod[[0, 49]], rtol=1e-5)


def test_take_shapes_entries_for_broadcasting() -> None:
    found = take(np.array([1.0, 2.0, 3.0]), torch.tensor([2, 0]), torch.zeros(2, 3, 4, 4))
    assert found.shape == (2, 1, 1, 1) and found.flatten().tolist() == [3, 1] and found.dtype == torch.float32


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


def constant(eps: float, variance: float, calls: list[str], name: str) -> Denoiser:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        calls.append(name)
        return Prediction(torch.full_like(x, eps), torch.full_like(x, variance))

    return denoise


def test_guidance_of_one_is_the_conditional_network_and_never_asks_the_null_branch() -> None:
    calls: list[str] = []
    denoiser = guided(constant(2.0, 0.3, calls, "label"), constant(1.0, -1.0, calls, "null"), 1.0)
    assert denoiser(torch.zeros(1), torch.zeros(1)).eps.item() == 2.0
    assert calls == ["label"]


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.5, 2.5), (3.0, 4.0)])
def test_guidance_extrapolates_from_null_to_label_and_keeps_the_conditional_variance(
    scale: float, expected: float
) -> None:
    denoiser = guided(constant(2.0, 0.25, [], "label"), constant(1.0, -1.0, [], "null"), scale)
    found = denoiser(torch.zeros(1), torch.zeros(1))
    assert found.eps.item() == expected
    assert found.variance is not None and found.variance.item() == 0.25


def test_a_network_is_bound_to_its_condition_and_split_into_noise_and_variance() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return torch.cat([x + label, x - label], 1)

    x, label = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 4.0)
    found = network_denoiser(Net(), label, True)(x, torch.zeros(1))
    assert found.eps.unique().item() == 5 and found.variance is not None and found.variance.unique().item() == -3
    assert network_denoiser(Net(), label, False)(x, torch.zeros(1)).variance is None


@pytest.fixture
def noisy() -> tuple[Schedule, Tensor, Tensor, Tensor]:
    """Schedule, t, eps and x_t of the images START."""
    schedule, t = linear(50), torch.tensor([5, 30])
    eps = NOISE.normal("eps", 0, (3, 4, 4))
    return schedule, t, eps, schedule.q_sample(START, t, eps)


def test_the_variational_term_vanishes_at_the_true_posterior(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    found = losses.variational_term(schedule, eps, torch.full_like(x, -1.0), START, x, t)
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-4, rtol=0)


def test_the_variational_term_is_the_divergence_of_two_gaussians(
    noisy: tuple[Schedule, Tensor, Tensor, Tensor],
) -> None:
    schedule, t, eps, x = noisy
    found = losses.variational_term(schedule, eps, torch.full_like(x, 1.0), START, x, t)
    ratio = schedule.posterior_variance[t.numpy()] / schedule.betas[t.numpy()]  # same means, variances tilde and beta
    np.testing.assert_allclose(found, 0.5 * (ratio - 1 - np.log(ratio)) / math.log(2), rtol=1e-3, atol=1e-6)


def test_the_loss_without_variance_is_the_squared_error(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    found = losses.hybrid_loss(schedule, eps + 0.5, START, x, t, eps)
    torch.testing.assert_close(found, torch.full((2,), 0.25))


def test_the_hybrid_loss_of_a_perfect_network_is_zero(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    output = torch.cat([eps, torch.full_like(eps, -1.0)], 1)
    torch.testing.assert_close(
        losses.hybrid_loss(schedule, output, START, x, t, eps), torch.zeros(2), atol=1e-4, rtol=0
    )


def test_the_variational_gradient_reaches_the_variance_only(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    shifted = (eps + 0.1).requires_grad_()
    variance = torch.zeros_like(x, requires_grad=True)
    losses.hybrid_loss(schedule, torch.cat([shifted, variance], 1), START, x, t, eps).sum().backward()
    assert shifted.grad is not None and variance.grad is not None
    torch.testing.assert_close(shifted.grad, torch.full_like(eps, 2 * 0.1 / 48), rtol=1e-3, atol=1e-6)
    assert (variance.grad != 0).all()


def test_the_likelihood_of_all_pixel_values_sums_to_one() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, scale in ((0.1, 0.05), (-0.98, 0.2), (1.0, 0.01)):
        total = losses.discrete_log_likelihood(levels, torch.full((256,), mean), torch.full((256,), math.log(scale)))
        assert total.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_at_the_first_step_the_variational_term_is_a_likelihood_in_bits() -> None:
    schedule, t = linear(50), torch.tensor([0, 0])
    eps = NOISE.normal("eps", 0, (3, 4, 4))
    x = schedule.q_sample(START, t, eps)
    found = losses.variational_term(schedule, eps, torch.full_like(x, -1.0), START, x, t)
    log_scale = torch.full_like(START, 0.5 * schedule.posterior_log_variance_clipped[0])
    expected = -losses.discrete_log_likelihood(START, START, log_scale).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_pixels_are_rounded_to_nearest_and_clipped() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 9.0, 3 / 127.5 - 1, 3.4 / 127.5 - 1, 3.6 / 127.5 - 1]])
    assert to_uint8(x, ("a",)).tolist() == [[0, 0, 128, 255, 255, 3, 3, 4]]


def test_every_pixel_value_survives_the_round_trip_to_the_networks_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(to_uint8(values.float() / 127.5 - 1, ("a",)), values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_named(bad: float) -> None:
    x = torch.zeros(3, 2)
    x[1, 1] = bad
    with pytest.raises(SisError, match="not finite: val-7"):
        to_uint8(x, ("val-6", "val-7", "val-8"))
