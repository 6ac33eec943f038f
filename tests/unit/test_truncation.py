# SPDX-License-Identifier: Apache-2.0
"""Latent diffusion's grid of steps, and where a chain begins that starts from a noised prior."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.noise import Noise
from sis.diffusion.samplers import ddim
from sis.diffusion.schedule import linear, scaled_linear
from sis.diffusion.truncation import released_count, truncated
from sis.errors import SisError

FULL = scaled_linear()
MUS = st.integers(1, 1000).map(lambda n: n / 1000)


def test_the_scaled_schedule_is_that_of_stable_diffusion() -> None:
    np.testing.assert_allclose(FULL.betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    # Facts of the authors' code: amplitude of the signal at the last three grid steps of twenty, and at the end.
    np.testing.assert_allclose(np.sqrt(FULL.alphas_cumprod[[901, 951, 999]]), [0.118, 0.090, 0.068], atol=5e-4)


def test_a_grid_starts_at_one_and_ends_where_the_schedule_begins() -> None:
    grid = FULL.leading(20)
    assert grid.timesteps.tolist() == list(range(1, 1000, 50))
    np.testing.assert_allclose(grid.alphas_cumprod, FULL.alphas_cumprod[grid.timesteps], rtol=1e-12)
    assert grid.alphas_cumprod_prev[0] == FULL.alphas_cumprod[0] < 1
    np.testing.assert_array_equal(grid.alphas_cumprod_prev[1:], grid.alphas_cumprod[:-1])
    assert (grid.posterior_variance > 0).all() and (grid.betas > 0).all()


def test_other_schedules_end_in_the_clean_picture_as_before() -> None:
    chain = linear(100).respaced(10)
    assert chain.before == 1.0 and chain.alphas_cumprod_prev[0] == 1.0 and chain.posterior_variance[0] == 0
    np.testing.assert_array_equal(chain.alphas_cumprod, np.cumprod(1 - chain.betas))


def test_respacing_a_grid_keeps_what_it_leads_to() -> None:
    short = FULL.leading(20).respaced(5)
    assert short.before == FULL.alphas_cumprod[0] and len(short) == 5
    np.testing.assert_allclose(short.alphas_cumprod, FULL.alphas_cumprod[short.timesteps], rtol=1e-12)


@pytest.mark.parametrize(("steps", "exact", "count", "last"), [(30, True, 30, 958), (30, False, 31, 991),
                                                               (7, True, 7, 853), (7, False, 8, 995)])  # fmt: skip
def test_a_number_that_does_not_divide_the_schedule_gives_the_authors_more_steps(
    steps: int, exact: bool, count: int, last: int
) -> None:
    grid = FULL.leading(steps, exact)
    assert (len(grid), grid.timesteps[-1]) == (count, last)


@pytest.mark.parametrize(("steps", "exact"), [(0, True), (1001, True), (1000, True), (3, False), (600, False)])
def test_grids_beyond_the_schedule_are_refused(steps: int, exact: bool) -> None:
    with pytest.raises(SisError, match="steps"):
        FULL.leading(steps, exact)


@pytest.mark.parametrize(("mu", "count", "first"), [(0.05, 2, 51), (0.8, 17, 801), (0.95, 20, 951), (1.0, 20, 951)])
def test_the_fixed_rule_keeps_every_step_up_to_mu(mu: float, count: int, first: int) -> None:
    start = truncated(FULL.leading(20), mu, 1000, "fixed")
    assert (len(start.chain), start.level) == (count, first)
    assert start.chain.timesteps[-1] == first and start.chain.before == FULL.alphas_cumprod[0]


@pytest.mark.parametrize(
    ("steps", "mu", "count", "first"),
    [
        (20, 0.8, 17, 801),
        (20, 0.9, 19, 901),
        (20, 0.95, 19, 901),
        (20, 1.0, 19, 901),
        (5, 0.8, 4, 601),
        (10, 0.9, 9, 801),
    ],
)
def test_the_release_never_reaches_the_last_step(steps: int, mu: float, count: int, first: int) -> None:
    start = truncated(FULL.leading(steps, exact=False), mu, 1000, "release")
    assert (len(start.chain), start.chain.timesteps[-1]) == (count, first)
    assert start.level == round(1000 * mu) - 1


def test_the_release_fails_above_its_last_step() -> None:
    grid = FULL.leading(10)
    with pytest.raises(SisError, match="no step at or above level 949, its last is 901"):
        truncated(grid, 0.95, 1000, "release")
    assert released_count(grid.timesteps, 999) == 9, "full noise is the whole grid to it, less one"


@pytest.mark.parametrize("mu", [0.0, -0.1, 1.01])
def test_a_level_that_is_no_share_is_refused(mu: float) -> None:
    with pytest.raises(SisError, match=r"share of the schedule in \(0, 1\]"):
        truncated(FULL.leading(20), mu, 1000, "fixed")


def test_no_chain_without_steps() -> None:
    with pytest.raises(SisError, match=r"mu = 1\.0 leaves no step of 1"):
        truncated(FULL.leading(1), 1.0, 1000, "release")


@given(MUS, st.sampled_from([1, 5, 7, 20, 30, 50, 100]))
def test_the_fixed_chain_is_a_beginning_of_the_grid_that_starts_where_it_is_noised(mu: float, steps: int) -> None:
    grid = FULL.leading(steps, exact=False)
    chain, level = truncated(grid, mu, 1000, "fixed")
    assert chain.timesteps.tolist() == [t for t in grid.timesteps if t <= round(1000 * mu) + 1]
    assert level == chain.timesteps[-1] and set(chain.timesteps) <= set(range(level + 1))


def perfect(x0: torch.Tensor) -> Denoiser:
    """The denoiser of data that is one point: the noise between it and x_t."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        bar = torch.from_numpy(FULL.alphas_cumprod)[t].float().reshape(-1, 1, 1, 1)
        return Prediction((x - bar.sqrt() * x0) / (1 - bar).sqrt(), None)

    return denoise


@pytest.mark.parametrize("mu", [0.3, 0.8, 1.0])
def test_a_truncated_chain_ends_at_the_noise_of_step_zero(mu: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(2, 4, 3, 3, generator=generator)
    chain, level = truncated(FULL.leading(20), mu, 1000, "fixed")
    x = FULL.q_sample(x0, torch.full((2,), level), eps)
    found = ddim(perfect(x0), chain, x, Noise(0, (("a", 0), ("b", 0))), clip=False)
    torch.testing.assert_close(found, FULL.q_sample(x0, torch.zeros(2, dtype=torch.int64), eps), rtol=1e-3, atol=1e-4)
    clean = ddim(perfect(x0), dataclasses.replace(chain, before=1.0), x, Noise(0, (("a", 0), ("b", 0))), clip=False)
    assert (clean - x0).abs().max() > 0, "the same betas from the clean picture are another chain"
