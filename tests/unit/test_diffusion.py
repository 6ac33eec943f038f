# SPDX-License-Identifier: Apache-2.0
"""Diffusion against facts that follow from its equations by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sis.diffusion import gaussians, guards, losses, samplers
from sis.diffusion.denoiser import Denoiser, Prediction, guided, network_denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.pixels import to_uint8
from sis.diffusion.schedule import Schedule, cosine, linear, named, take
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


def test_the_cosine_schedule_falls_as_its_formula_says_until_its_last_beta() -> None:
    schedule = cosine(100)
    t = np.arange(1, 100)  # the hundredth would have no signal left
    expected = (np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    np.testing.assert_allclose(schedule.alphas_cumprod[:99], expected, rtol=1e-9)
    assert schedule.betas[-1] == 0.999 and schedule.alphas_cumprod[-1] > 0


def test_a_schedule_is_found_by_its_name() -> None:
    np.testing.assert_array_equal(named("linear", 60).betas, linear(60).betas)
    np.testing.assert_array_equal(named("cosine", 60).betas, cosine(60).betas)


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


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ("3", [0, 50, 99]),  # 49.5 is rounded to the even 50
        ("ddim20", list(range(0, 100, 5))),
        ("3,0,2", [0, 16, 33, 67, 99]),  # sections of 34, 33 and 33 steps; 16.5 is rounded to 16
    ],
)
def test_respacing_takes_the_words_of_the_published_code(steps: str, kept: list[int]) -> None:
    assert linear(100).respaced(steps).timesteps.tolist() == kept


def test_strides_are_added_up_as_in_the_published_code() -> None:
    # 7 * 99 / 14 is 49.5, which is even-rounded to 50; the sum of seven strides lies just below.
    assert linear(100).respaced(15).timesteps[7] == 49


@pytest.mark.parametrize("steps", [0, -1, 101, "35,1,1", "0,0", "ddim0", "ddim60", "ddim", "5,", "all"])
def test_impossible_respacings_are_refused(steps: int | str) -> None:
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


def test_a_fixed_variance_is_used_even_where_one_is_learned() -> None:
    chain, like, t = linear(50).respaced(5), torch.zeros(2, 3, 4, 4), torch.tensor([3, 1])
    learned = torch.full_like(like, 0.4)
    for kind in ("small", "large"):
        fixed = gaussians.reverse_log_variance(chain, like, t, learned, kind)
        assert torch.equal(fixed, gaussians.reverse_log_variance(chain, like, t, None, kind)) and fixed.shape[1:] == (
            1,
            1,
            1,
        )
    small, large = (gaussians.reverse_log_variance(chain, like, t, None, kind) for kind in ("small", "large"))
    between = gaussians.reverse_log_variance(chain, like, t, learned)
    torch.testing.assert_close(between, (0.7 * large + 0.3 * small).expand_as(between))


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


def test_the_forward_process_has_the_mean_and_variance_that_its_samples_have() -> None:
    schedule, t = linear(50), torch.tensor([20])
    start = torch.full((1, 1, 200, 200), 0.7)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    mean, variance, log_variance = gaussians.q_mean_variance(schedule, start, t)
    samples = schedule.q_sample(start, t, noise)
    assert samples.mean().item() == pytest.approx(mean.mean().item(), abs=0.02)
    assert samples.var().item() == pytest.approx(variance.item(), rel=0.03)
    assert log_variance.item() == pytest.approx(math.log(variance.item()), rel=1e-5)


def test_channel_statistics_are_met_in_every_channel_of_every_image_after_the_clipping() -> None:
    schedule, t = linear(50), torch.tensor([49, 10])
    x = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([[0.1, -0.2, 0.3], [0.4, 0.5, 0.6]])
    plain = gaussians.predict_start(schedule, x, t, 0.2 * x, clip=True)
    found = gaussians.predict_start(schedule, x, t, 0.2 * x, clip=True, statistics=wanted)
    torch.testing.assert_close(found.mean((2, 3)), wanted[0].expand(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((2, 3)), wanted[1].expand(2, 3), atol=1e-5, rtol=0)
    own = torch.stack([plain[0].mean((1, 2)), plain[0].std((1, 2))])
    torch.testing.assert_close(gaussians.with_statistics(plain[:1], own), plain[:1], atol=1e-5, rtol=1e-4)


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


def test_the_terms_of_the_objective_add_up_to_it(noisy: tuple[Schedule, Tensor, Tensor, Tensor]) -> None:
    schedule, t, eps, x = noisy
    output = torch.cat([0.9 * eps, 0.2 * eps], 1)
    simple, variational = losses.hybrid_terms(schedule, output, START, x, t, eps)
    assert variational is not None and (variational > 0).all()
    torch.testing.assert_close(simple, (0.01 * eps**2).mean((1, 2, 3)))
    assert torch.equal(simple + variational, losses.hybrid_loss(schedule, output, START, x, t, eps))
    assert losses.hybrid_terms(schedule, 0.9 * eps, START, x, t, eps).variational is None


def test_clipping_the_predicted_image_changes_the_variational_term_where_it_left_the_range(
    noisy: tuple[Schedule, Tensor, Tensor, Tensor],
) -> None:
    schedule, t, eps, x = noisy
    variance = torch.zeros_like(x)
    for wrong, changes in ((eps, False), (-2 * eps, True)):
        terms = [losses.variational_term(schedule, wrong, variance, START, x, t, clip=clip) for clip in (False, True)]
        assert torch.equal(*terms) != changes and (terms[1] <= terms[0]).all()


def test_the_prior_term_is_what_the_last_step_still_knows_of_the_image() -> None:
    schedule, start = linear(1000), torch.full((2, 3, 4, 4), 100.0)
    start[1] = 1
    bar = schedule.alphas_cumprod[-1]
    expected = [0.5 * (-1 - math.log(1 - bar) + 1 - bar + bar * level**2) / math.log(2) for level in (100, 1)]
    # The divergence is the difference of numbers near one: single precision keeps about 1e-7 of it.
    np.testing.assert_allclose(losses.prior_term(schedule, start), expected, rtol=1e-4, atol=1e-6)


def test_the_likelihood_of_all_pixel_values_sums_to_one() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, scale in ((0.1, 0.05), (-0.98, 0.2), (1.0, 0.01)):
        total = gaussians.discrete_log_likelihood(levels, torch.full((256,), mean), torch.full((256,), math.log(scale)))
        assert total.double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_at_the_first_step_the_variational_term_is_a_likelihood_in_bits() -> None:
    schedule, t = linear(50), torch.tensor([0, 0])
    eps = NOISE.normal("eps", 0, (3, 4, 4))
    x = schedule.q_sample(START, t, eps)
    found = losses.variational_term(schedule, eps, torch.full_like(x, -1.0), START, x, t)
    log_scale = torch.full_like(START, 0.5 * schedule.posterior_log_variance_clipped[0])
    expected = -gaussians.discrete_log_likelihood(START, START, log_scale).flatten(1).mean(1) / math.log(2)
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


def test_an_answer_that_is_not_finite_is_refused_with_its_step_and_its_images() -> None:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        bad = torch.zeros_like(x)
        bad[1, 0, 0, 0] = math.inf if int(t[0]) < 20 else 0  # the clipping would hide it
        return Prediction(bad, None)

    watched, chain = guards.finite(denoise, ("val-1", "val-2")), linear(50).respaced(5)
    with pytest.raises(SisError, match=r"not finite at step t = 12: val-2 "):
        samplers.ddim(watched, chain, torch.zeros(2, 3, 4, 4), NOISE)
    finite = samplers.ddim(denoise, chain, torch.zeros(2, 3, 4, 4), NOISE)
    assert torch.isfinite(finite).all(), "unwatched, nobody sees it"


def test_a_variance_that_is_not_a_number_is_refused_and_a_padded_image_is_named_once() -> None:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(x, torch.full_like(x, math.nan))

    with pytest.raises(SisError, match=r"t = 7: a, b ") as caught:
        guards.finite(denoise, ("a", "b", "b", "b"))(torch.zeros(4, 1, 2, 2), torch.full((4,), 7))
    assert "b, b" not in str(caught.value)


@pytest.mark.parametrize(("batch", "smaller"), [(2, "1"), (3, "2"), (16, "8"), (24, "16")])
def test_a_batch_that_does_not_fit_the_memory_is_refused_with_a_smaller_one_to_try(batch: int, smaller: str) -> None:
    words = rf"a batch of {batch} images of 32x64 does not fit - .*batch_size to {smaller}$"
    with pytest.raises(SisError, match=words), guards.fitting(batch, (32, 64)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_one_image_that_does_not_fit_is_not_answered_with_a_batch_of_none() -> None:
    words = "a batch of 1 images of 8x8 does not fit - use smaller images or more memory"
    with pytest.raises(SisError, match=words), guards.fitting(1, (8, 8)):
        torch.empty(2**60)  # the CPU's allocator has an error of its own


def test_other_errors_of_a_batch_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), guards.fitting(4, (8, 8)):
        raise RuntimeError("shapes do not match")
