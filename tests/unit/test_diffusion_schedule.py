# SPDX-License-Identifier: Apache-2.0
"""Noise schedules against facts that follow by hand from their equations: levels, respacing and the posterior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sis.diffusion.schedule import cosine, linear, named, take
from sis.errors import SisError


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
