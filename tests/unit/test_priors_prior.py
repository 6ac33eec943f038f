# SPDX-License-Identifier: Apache-2.0
"""Priors assembled for label maps: which statistic a token gets, and what the options change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from priors_example import Split, plain_prior
from pydantic import ValidationError
from torch import Tensor

from sis.errors import SisError
from sis.priors.accumulator import Accumulator
from sis.priors.params import Kind, Policy
from sis.priors.prior import Gaussians, Prior, draw
from sis.priors.statistics import Statistics

#: Class 0 everywhere often; class 1 once, at one place; class 2 four times at one place, class 3 never.
COUNTS = np.zeros((4, 2, 3), int)
COUNTS[0], COUNTS[1, 0, 0], COUNTS[2, 0, 1] = 9, 1, 4
LABELS = torch.tensor([[[1, 2, 0], [1, 2, 3]]])


def first_means(kind: Kind, policy: Policy | None = None, prior: Prior | None = None) -> list:
    mean, _ = (prior or plain_prior(COUNTS)).maps(LABELS, kind, policy)
    return mean[0, 0].tolist()


def test_the_paper_falls_back_to_the_class_and_for_unknown_classes_to_the_position() -> None:
    assert first_means("joint") == [[10, 10, 10], [101, 102, 1000]]
    assert first_means("categorical") == [[101, 102, 100], [101, 102, 1000]]
    assert first_means("spatial") == [[1000] * 3] * 2
    assert first_means("normal") == [[0] * 3] * 2


def test_the_other_fall_back_is_the_position() -> None:
    assert first_means("joint", Policy(fallback="spatial")) == [[10, 10, 10], [1000, 1000, 1000]]


def test_rare_cells_and_rare_classes_fall_back_by_the_same_threshold() -> None:
    assert first_means("joint", Policy(min_count=2)) == [[1000, 10, 10], [1000, 102, 1000]]
    assert first_means("joint", Policy(min_count=5)) == [[1000, 1000, 10], [1000, 1000, 1000]]


def test_deviations_come_with_their_means() -> None:
    prior = plain_prior(COUNTS)
    assert prior.maps(LABELS, "joint")[1][0, 1].tolist() == [[2, 2, 2], [3, 3, 4]]
    torch.testing.assert_close(
        prior.maps(LABELS, "joint", Policy(temperature=0.5))[1] * 2, prior.maps(LABELS, "joint")[1]
    )
    assert prior.maps(LABELS, "normal")[1].unique().tolist() == [1.0]


def test_the_shares_of_falling_tokens_are_told() -> None:
    prior = plain_prior(COUNTS)
    found = prior.assigned_share(LABELS, "joint")
    assert found == pytest.approx({"joint": 3 / 6, "class": 2 / 6, "spatial": 1 / 6, "normal": 0})
    assert prior.assigned_share(LABELS, "normal")["normal"] == 1
    assert prior.counts(LABELS).tolist() == [[[1, 4, 9], [0, 0, 0]]]


def test_another_class_may_stand_for_unknown_ones() -> None:
    assert first_means("joint", Policy(unknown=0))[1] == [101, 102, 100]
    assert first_means("categorical", Policy(unknown=0, min_count=2)) == [[100, 102, 100], [100, 102, 100]]
    assert first_means("joint", Policy(unknown=3))[1] == [101, 102, 1000]
    with pytest.raises(SisError, match=r"class 255 cannot stand for unknown ones: the prior has 4 classes"):
        first_means("joint", Policy.released())


def test_one_less_than_the_count_needs_two_tokens() -> None:
    policy = Policy(ddof=1)
    assert first_means("joint", policy) == [[1000, 10, 10], [1000, 102, 1000]]
    std = plain_prior(COUNTS).maps(LABELS, "joint", policy)[1]
    assert std[0, 0, 0, 1].item() == pytest.approx(2 * math.sqrt(4 / 3))
    assert std[0, 0, 1, 1].item() == pytest.approx(3 * math.sqrt(4 / 3))
    assert std[0, 0, 0, 0].item() == pytest.approx(4 * math.sqrt(50 / 49))


def test_the_released_policy_divides_by_one_less_for_classes_alone() -> None:
    prior = plain_prior(COUNTS)
    released = Policy.released("class", unknown=None)
    mean, std = prior.maps(LABELS, "joint", released)
    # The class that was drawn once has no deviation there; upstream such a class makes the whole map NaN.
    assert mean[0, 0].tolist() == [[10, 10, 10], [1000, 102, 1000]]
    assert std[0, 0, 0, 0].item() == 2 and std[0, 0, 1, 1].item() == pytest.approx(3 * math.sqrt(4 / 3))
    assert std[0, 0, 1, 0].item() == 4


def test_shrinkage_draws_joint_cells_towards_their_class() -> None:
    mean, std = plain_prior(COUNTS).maps(LABELS, "joint", Policy(shrinkage=4.0))
    assert mean[0, 0, 0, 1].item() == pytest.approx((4 * 10 + 4 * 102) / 8)
    assert std[0, 0, 0, 1].item() == pytest.approx(math.sqrt((4 * 4 + 4 * 9) / 8))
    assert mean[0, 0, 1, 2].item() == 1000
    kept = plain_prior(COUNTS).maps(LABELS, "joint", Policy(shrinkage=4.0, min_count=5, fallback="spatial"))[0]
    assert kept[0, 0, 0, 1].item() == 1000


def test_the_released_sum_of_two_priors_is_not_divided_by_its_weights() -> None:
    mean, std = plain_prior(COUNTS).maps(LABELS, "spatial_class", Policy(spatial_weight=2.0, class_weight=0.5))
    m = 2 * 1000 + 0.5 * 100
    assert mean[0, 0, 0, 2].item() == m
    variance = (2 * (16 + (1000 - m) ** 2) + 0.5 * (9 + (100 - m) ** 2)) / 2.5
    assert std[0, 0, 0, 2].item() == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_a_draw_has_the_priors_mean_and_deviation() -> None:
    mean, std = plain_prior(COUNTS).maps(LABELS, "joint")
    eps = torch.randn(20_000, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    x = draw(mean, std, eps)
    assert x.shape == eps.shape
    torch.testing.assert_close(x.mean(0), mean[0], atol=0.15, rtol=0)
    torch.testing.assert_close(x.std(0), std[0], rtol=0.05, atol=0)


def test_the_numbers_are_those_of_the_statistics() -> None:
    split, found = Split.made(30, 4), Accumulator(5, 3, (4, 6))
    found.add(split.mean, split.small)
    prior = Prior.of(Statistics(found))
    assert prior.classes == 5 and prior.shape == (3, 4, 6)
    labels = torch.from_numpy(split.small[:2])
    mean, std = prior.maps(labels, "joint")
    of_class = prior.maps(labels, "categorical", Policy(ddof=1))
    for b, y, x in np.ndindex(2, 4, 6):
        k = int(labels[b, y, x])
        tokens = split.mean[split.small[:, y, x] == k, :, y, x]
        np.testing.assert_allclose(mean[b, :, y, x], tokens.mean(0), atol=1e-6)
        np.testing.assert_allclose(std[b, :, y, x], tokens.std(0), atol=1e-6)
        every = split.mean.transpose(0, 2, 3, 1)[split.small == k]
        np.testing.assert_allclose(of_class[0][b, :, y, x], every.mean(0), atol=1e-6)
        np.testing.assert_allclose(of_class[1][b, :, y, x], every.std(0, ddof=1), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.zeros(1, 2, 4, dtype=torch.int64), "prior of 2x3 positions"),
        (torch.zeros(2, 3, dtype=torch.int64), "prior of 2x3 positions"),
        (torch.full((1, 2, 3), 4), r"label ids 4\.\.4, the prior has 4 classes"),
        (torch.full((1, 2, 3), -1), "label ids -1"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(labels: Tensor, says: str) -> None:
    with pytest.raises(SisError, match=says):
        plain_prior(COUNTS).maps(labels, "joint")


def test_unknown_kinds_get_the_nearest_name() -> None:
    with pytest.raises(SisError, match="did you mean 'joint'"):
        plain_prior(COUNTS).maps(LABELS, "joints")  # type: ignore[arg-type]


def test_priors_of_nothing_or_with_holes_are_refused() -> None:
    good = plain_prior(COUNTS)
    with pytest.raises(SisError, match="from no images"):
        Prior.of(Statistics(Accumulator(3, 2, (2, 2))))
    with pytest.raises(SisError, match="the spatial prior is not finite"):
        Prior(good.joint, good.categorical, Gaussians(good.spatial.count, good.spatial.mean / 0, good.spatial.std))
    with pytest.raises(SisError, match="the categorical prior has shape"):
        Prior(good.joint, good.joint, good.spatial)


@pytest.mark.parametrize("changed", [{"min_count": 2}, {"ddof": 1}, {"shrinkage": 1.0}])
def test_the_release_is_not_mixed_with_our_options(changed: dict) -> None:
    with pytest.raises(ValidationError, match="fidelity release fixes"):
        Policy.model_validate({"fidelity": "release", **changed})
    with pytest.raises(ValidationError, match="cannot both be 0"):
        Policy(spatial_weight=0.0, class_weight=0.0)
