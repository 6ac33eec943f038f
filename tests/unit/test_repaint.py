# SPDX-License-Identifier: Apache-2.0
"""RePaint against a plain loop, against samplers, and against a Gaussian whose conditional distribution is known."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sis.diffusion import samplers
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.noise import Noise
from sis.diffusion.repaint import Resampling, Step, evaluations, journey, repaint
from sis.diffusion.schedule import Schedule, linear, take
from sis.errors import SisError

NOISE = Noise(3, (("a", 0), ("b", 0)))
ONCE = Resampling(1, 1)
CHAIN = linear(100).respaced(12)
ORIGINAL = NOISE.uniform("picture", 0, (3, 6, 8)) * 2 - 1
REGION = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
REGION[..., 2:5, 3:7] = True


def curved(x: Tensor, t: Tensor) -> Prediction:
    """A denoiser that looks at neighbours and at t, with a variance of its own."""
    beside = x + 0.5 * torch.roll(x, 1, -1)
    eps = torch.tanh(beside) * (0.3 + t.reshape(-1, 1, 1, 1) / 100)
    return Prediction(eps, torch.sin(x))


def drawn(how: Resampling, rule: Step | None = None, noise: Noise = NOISE, original: Tensor = ORIGINAL) -> Tensor:
    return repaint(curved, CHAIN, original, REGION, noise, how, rule or Step())


@pytest.mark.parametrize(
    ("steps", "how", "expected"),
    [
        (4, Resampling(1, 1), [3, 2, 1, 0, -1]),
        (3, Resampling(2, 1), [2, 1, 2, 1, 0, 1, 0, -1]),
        (3, Resampling(3, 2), [2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, -1]),
        (5, Resampling(2, 2), [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1]),
        (1, Resampling(1, 10), [0, -1]),
    ],
)
def test_the_journey_goes_back_where_repaint_does(steps: int, how: Resampling, expected: list[int]) -> None:
    assert journey(steps, how) == expected
    assert evaluations(steps, how) == sum(b < a for a, b in pairwise(expected))


def test_the_published_setting_has_the_published_number_of_evaluations() -> None:
    states = journey(250, Resampling(10, 10))
    visits = Counter(a for a, b in pairwise(states) if b < a)
    assert len(states) - 1 == 250 + 2 * 9 * 10 * 24
    assert visits[249] == 1 and visits[245] == 1 and visits[240] == 10 and visits[0] == 1 and visits[100] == 10
    assert all(abs(a - b) == 1 for a, b in pairwise(states)) and states[0] == 249 and states[-1] == -1
    assert evaluations(250, Resampling(10, 10)) == 250 + 9 * 10 * 24


@pytest.mark.parametrize("how", [Resampling(0, 1), Resampling(1, 0), Resampling(2, 12), Resampling(2, 30)])
def test_a_journey_that_cannot_be_made_is_refused(how: Resampling) -> None:
    with pytest.raises(SisError, match=r"RePaint needs|too short to go back"):
        journey(12, how)
    assert journey(12, Resampling(1, 30)) == list(range(11, -2, -1)), "one round never goes back"


@pytest.mark.parametrize("how", [ONCE, Resampling(3, 1), Resampling(4, 5)])
def test_the_known_region_is_the_original_exactly(how: Resampling) -> None:
    x = drawn(how)
    known = (~REGION).expand_as(x)
    assert torch.equal(x[known], ORIGINAL[known])
    assert (x[~known] - ORIGINAL[~known]).abs().min() > 1e-6
    assert torch.isfinite(x).all()


def test_one_round_is_eq_12_as_a_plain_loop() -> None:
    bar, betas = CHAIN.alphas_cumprod, CHAIN.betas
    x = NOISE.normal("start", 0, (3, 6, 8)).double()
    for index in range(11, -1, -1):
        step = int(CHAIN.timesteps[index])
        known = bar[index] ** 0.5 * ORIGINAL + (1 - bar[index]) ** 0.5 * NOISE.normal(
            "repaint known 0", step, (3, 6, 8)
        )
        x = torch.where(REGION, x, known.double())  # \hat y_t = m y_t + (1 - m) y_t^o, before the network sees it
        eps, variance = curved(x.float(), torch.full((2,), step))
        assert variance is not None
        start = ((x - (1 - bar[index]) ** 0.5 * eps) / bar[index] ** 0.5).clamp(-1, 1)
        prev = bar[index - 1] if index else 1.0
        x = (betas[index] * prev**0.5 * start + (1 - prev) * (1 - betas[index]) ** 0.5 * x) / (1 - bar[index])
        if index:
            small = betas[index] * (1 - prev) / (1 - bar[index])
            share = (variance + 1) / 2
            log_variance = share * np.log(betas[index]) + (1 - share) * np.log(small)
            x = x + torch.exp(0.5 * log_variance) * NOISE.normal("repaint step 0", step, (3, 6, 8))
    expected = torch.where(REGION, x.float(), ORIGINAL)
    torch.testing.assert_close(drawn(ONCE), expected, rtol=0, atol=2e-5)


def test_a_step_with_eta_is_the_samplers_own() -> None:
    everywhere = torch.ones_like(REGION)
    start = samplers.start_noise(NOISE, (3, 6, 8))
    expected = samplers.ddim(curved, CHAIN, start, NOISE, eta=0.0)
    assert torch.equal(repaint(curved, CHAIN, ORIGINAL, everywhere, NOISE, ONCE, Step(eta=0.0)), expected)
    for eta in (0.4, 1.0):
        renamed = Renamed(NOISE.seed, NOISE.keys)
        expected = samplers.ddim(curved, CHAIN, start, renamed, eta=eta)
        got = repaint(curved, CHAIN, ORIGINAL, everywhere, NOISE, ONCE, Step(eta=eta))
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


class Renamed(Noise):
    """The noise that RePaint's first round draws where a sampler draws its own."""

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:  # pyright: ignore
        return super().normal("repaint step 0" if purpose in ("ddpm", "ddim") else purpose, step, shape)


def test_drawn_everywhere_it_is_ancestral_sampling() -> None:
    everywhere, start = torch.ones_like(REGION), samplers.start_noise(NOISE, (3, 6, 8))
    for rule in (Step(), Step(clip=False, variance="large"), Step(statistics=torch.tensor([[0.1] * 3, [0.3] * 3]))):
        expected = samplers.ddpm(
            curved, CHAIN, start, Renamed(NOISE.seed, NOISE.keys), rule.clip, rule.variance, rule.statistics
        )
        got = repaint(curved, CHAIN, ORIGINAL, everywhere, NOISE, ONCE, rule)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_network_sees_the_original_with_the_noise_of_the_very_step() -> None:
    seen: list[tuple[int, Tensor]] = []

    def watch(x: Tensor, t: Tensor) -> Prediction:
        seen.append((int(t[0]), x))
        return curved(x, t)

    repaint(watch, CHAIN, ORIGINAL, REGION, NOISE, Resampling(2, 3), Step())
    assert len(seen) == evaluations(12, Resampling(2, 3))
    visits: Counter[int] = Counter()
    known = (~REGION).expand_as(ORIGINAL)
    for step, x in seen:
        index = torch.full((2,), CHAIN.timesteps.tolist().index(step))
        eps = NOISE.normal(f"repaint known {visits[step]}", step, (3, 6, 8))
        assert torch.equal(x[known], CHAIN.q_sample(ORIGINAL, index, eps)[known])
        visits[step] += 1
    assert max(visits.values()) == 2


def test_the_noise_of_a_later_round_is_another() -> None:
    asked: Counter[tuple[str, int]] = Counter()

    class Watched(Noise):
        def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:  # pyright: ignore
            asked[(purpose, step)] += 1
            return super().normal(purpose, step, shape)

    drawn(Resampling(3, 4), noise=Watched(3, NOISE.keys))
    assert set(asked.values()) == {1}, "no draw is used twice"
    assert {p.split()[-1] for p, _ in asked if p.startswith("repaint")} == {"0", "1", "2"}
    assert sum(p.startswith("repaint back") for p, _ in asked) == 2 * 4 * 2


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    how = Resampling(2, 3)
    assert torch.equal(drawn(how), drawn(how))
    assert not torch.equal(drawn(how), drawn(how, noise=Noise(4, NOISE.keys)))


def test_a_picture_does_not_depend_on_its_place_in_the_batch() -> None:
    both = drawn(Resampling(2, 3))
    for place, key in enumerate(NOISE.keys):
        alone = drawn(Resampling(2, 3), noise=Noise(3, (key,)), original=ORIGINAL[place : place + 1])
        assert torch.equal(alone[0], both[place])


# A pixel pair with mean MEAN and covariance COVARIANCE, at many places at once: the left one is given.
MEAN, COVARIANCE = torch.tensor([0.2, -0.3]), torch.tensor([[0.25, 0.18], [0.18, 0.16]])
GIVEN = 0.9
CONDITIONAL_MEAN = -0.3 + 0.18 / 0.25 * (GIVEN - 0.2)  # 0.204
CONDITIONAL_DEVIATION = (0.16 - 0.18**2 / 0.25) ** 0.5  # 0.174


def gaussian(full: Schedule) -> Denoiser:
    """The exact denoiser of pictures `(b, 1, n, 2)` whose rows are independent draws of the pair."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        bar = take(full.alphas_cumprod, t[:1], t).reshape(())
        noisy = bar * COVARIANCE + (1 - bar) * torch.eye(2)
        return Prediction((1 - bar).sqrt() * (x - bar.sqrt() * MEAN) @ torch.linalg.inv(noisy), None)

    return denoise


def pairs(steps: int, how: Resampling, given: float = GIVEN) -> Tensor:
    """2,048 right pixels, drawn under the given left one."""
    full = linear(1000)
    original = torch.tensor([given, 7.0]).expand(1, 1, 2048, 2).clone()
    noise, edited = Noise(0, (("a", 0),)), torch.tensor([False, True])
    rule = Step(clip=False, variance="large")
    x = repaint(gaussian(full), full.respaced(steps), original, edited, noise, how, rule)
    assert torch.equal(x[..., 0], original[..., 0])
    return x[0, 0, :, 1]


def test_the_region_follows_its_distribution_given_the_known_pixels() -> None:
    """Four standard errors of the mean are 0.015; a chain of 100 steps has errors of its own."""
    right = pairs(100, Resampling(10, 1))
    assert float(right.mean()) == pytest.approx(CONDITIONAL_MEAN, abs=0.03)
    assert float(right.std()) == pytest.approx(CONDITIONAL_DEVIATION, abs=0.02)
    share = ((right - CONDITIONAL_MEAN).abs() < CONDITIONAL_DEVIATION).float().mean()
    assert float(share) == pytest.approx(0.683, abs=0.045)


def test_more_rounds_come_nearer_to_it_and_one_round_is_biased() -> None:
    errors = [abs(float(pairs(50, Resampling(n, 1)).mean()) - CONDITIONAL_MEAN) for n in (1, 3, 10)]
    assert errors[0] > 0.1 > 2 * errors[1] > 2 * errors[2]
    assert abs(CONDITIONAL_MEAN - float(MEAN[1])) > 3 * errors[0], "even one round knows its neighbour"


def test_on_a_short_chain_short_jumps_come_nearer_than_long_ones() -> None:
    """What docs/editing.md advises: 50 steps, about equally many evaluations."""
    short, long = Resampling(8, 1), Resampling(10, 10)
    assert abs(evaluations(50, short) - evaluations(50, long)) < 20
    errors = [abs(float(pairs(50, how).mean()) - CONDITIONAL_MEAN) for how in (short, long)]
    assert errors[0] < 0.5 * errors[1]
