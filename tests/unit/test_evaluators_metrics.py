# SPDX-License-Identifier: Apache-2.0
"""Metrics against numbers by hand and against the packages that define them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pytest

from evaluators.bootstrap import interval, multiplicities
from evaluators.confusion import confusions
from evaluators.discovery import find_metric, find_segmenter, stems
from evaluators.frechet import Moments, distance, distances, root
from evaluators.metric import Batch, Judge, Needs
from evaluators.metrics import accuracy, fd, lpips, miou, throughput
from evaluators.partial import partial
from sis.config.protocols import ProtocolCard
from sis.data.labels import LabelSpace
from sis.errors import SisError

SPACE = LabelSpace.model_validate(
    {
        "name": "four",
        "void": 255,
        "classes": [
            {"id": 0, "name": "a", "colour": [0, 0, 0]},
            {"id": 1, "name": "b", "colour": [1, 0, 0]},
            {"id": 2, "name": "unscored", "colour": [2, 0, 0], "ignored": True},
            {"id": 3, "name": "c", "colour": [3, 0, 0]},
            {"id": 4, "name": "d", "colour": [4, 0, 0]},
        ],
    }
)


def card(rule: Literal["union", "gt", "all"] = "union") -> ProtocolCard:
    return ProtocolCard.model_validate(
        {
            "name": "test",
            "title": "Test",
            "dataset": "toy",
            "split": "val",
            "reference": {"split": "train"},
            "segmenter": {
                "name": "scenes_unet",
                "display": "toy-judge",
                "steps": 1,
                "batch_size": 1,
                "learning_rate": 0.1,
                "seed": 0,
                "width": 4,
            },
            "metrics": ["miou"],
            "class_rule": rule,
            "bootstrap": {"replicates": 5, "seed": 1},
            "version": 1,
        }
    )


def one_image(labels: list[int], predicted: list[int]) -> Batch:
    truth, guess = np.array([[labels]], np.uint8), np.array([[predicted]], np.uint8)
    return Batch(["m"], [0], np.empty((1, 1, len(labels), 3), np.uint8), truth, guess)


# a: 2 of 3 pixels hit; b: 1 of 2, and once in place of a; c: never labelled, once predicted; d: nowhere;
# the pixels of void and of the unscored class do not count
TRUTH, GUESS = [0, 0, 0, 1, 1, 255, 2], [0, 0, 1, 1, 3, 0, 1]


@pytest.mark.parametrize(
    ("rule", "expected", "counted"),
    [
        ("union", (2 / 3 + 1 / 3 + 0) / 3, 3),
        ("gt", (2 / 3 + 1 / 3) / 2, 2),
        ("all", (2 / 3 + 1 / 3 + 0 + 0) / 4, 4),
    ],
)
def test_miou_under_each_class_rule(rule: Literal["union", "gt", "all"], expected: float, counted: int) -> None:
    judge = Judge(card(rule), SPACE)
    rows = miou.map(one_image(TRUTH, GUESS), judge)
    found = miou.finish(rows, np.ones((1, 1)), judge)
    assert found.value[0] == pytest.approx(100 * expected)
    assert found.note == f"{counted} of 4 classes"
    assert found.by_class["a"][0] == pytest.approx(200 / 3)
    absent = found.by_class["d"][0]
    assert absent == 0 if rule == "all" else np.isnan(absent)
    assert np.isnan(found.by_class["c"][0]) == (rule == "gt")
    assert "unscored" not in found.by_class


def test_accuracy_counts_pixels_that_are_not_void() -> None:
    judge = Judge(card(), SPACE)
    rows = miou.map(one_image(TRUTH, GUESS), judge)
    assert accuracy.finish(rows, np.ones((1, 1)), judge).value[0] == pytest.approx(100 * 3 / 5)


def test_an_image_of_void_alone_is_undefined_not_zero() -> None:
    judge = Judge(card(), SPACE)
    rows = miou.map(one_image([255, 255], [0, 1]), judge)
    assert np.isnan(miou.finish(rows, np.ones((1, 1)), judge).value[0])
    assert np.isnan(accuracy.finish(rows, np.ones((1, 1)), judge).value[0])


def test_confusions_are_dataset_level_and_weighted_by_map() -> None:
    rng = np.random.default_rng(0)
    labels, guesses = rng.choice([0, 1, 3, 4, 255], (2, 3, 8, 8)).astype(np.uint8)
    guesses[guesses == 255] = 4
    rows = partial(["x", "y", "z"], [0, 0, 0], confusion=confusions(labels, guesses, SPACE))
    judge = Judge(card(), SPACE)
    doubled = partial(
        ["x", "y", "y2"], [0, 0, 0], confusion=rows.columns["confusion"][[0, 1, 1]]
    )  # the same as weights 1, 2, 0
    weighted = miou.finish(rows, np.array([[1.0, 2.0, 0.0]]), judge).value
    assert weighted == pytest.approx(miou.finish(doubled, np.ones((1, 3)), judge).value)


def test_frechet_of_equal_covariances_is_the_squared_distance_of_means() -> None:
    x = np.random.default_rng(1).normal(size=(50, 4))
    assert distance(Moments.of(x), Moments.of(x + np.array([1, 2, 0, 0]))) == pytest.approx(5, abs=1e-9)
    assert distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-9)


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    one = Moments(3.0, np.array([0.0, 1.0]), np.diag([2 * 4.0, 2 * 9.0]))
    two = Moments(5.0, np.array([2.0, 1.0]), np.diag([4 * 1.0, 4 * 16.0]))
    assert distance(one, two) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_frechet_equals_scipy_and_both_routes_agree() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    mixing = rng.normal(size=(6, 6))
    x, y = rng.normal(size=(40, 6)) @ mixing, rng.normal(size=(30, 6)) + 0.3
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    expected = gap @ gap + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    assert distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)
    assert distances(x, np.ones((1, 40)), Moments.of(y))[0] == pytest.approx(expected, rel=1e-9)
    few = x[:4]  # fewer rows than features: the other route
    slow = distance(Moments.of(few), Moments.of(y))
    assert distances(few, np.ones((1, 4)), Moments.of(y))[0] == pytest.approx(slow, abs=1e-5)


def test_frechet_weights_are_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    x, reference = rng.normal(size=(9, 3)), Moments.of(rng.normal(size=(20, 3)))
    w = np.array([0, 1, 2, 3, 0, 1, 1, 1, 0])
    repeated = np.repeat(x, w, axis=0)
    assert distances(x, w[None], reference)[0] == pytest.approx(distance(Moments.of(repeated), reference))
    assert np.isnan(distances(x, np.zeros((1, 9)), reference)[0])


def test_root_squares_to_its_argument() -> None:
    a = np.random.default_rng(4).normal(size=(5, 3))
    np.testing.assert_allclose(root(a @ a.T) @ root(a @ a.T), a @ a.T, atol=1e-12)


def test_fd_needs_a_reference_and_carries_the_judges_name() -> None:
    rows = partial(["a", "b"], [0, 0], features=np.eye(2, dtype=np.float32))
    with pytest.raises(SisError, match="two real images"):
        fd.finish(rows, np.ones((1, 2)), Judge(card(), SPACE))
    assert fd.name(card()) == "fd-toy-judge"
    found = fd.finish(rows, np.ones((1, 2)), Judge(card(), SPACE, reference=rows))
    assert found.value[0] == pytest.approx(0, abs=1e-9)
    assert "biased" in found.note


def test_ms_ssim_equals_the_package() -> None:
    import torch
    from pytorch_msssim import ms_ssim

    from evaluators.structural import exponents, pairwise_ms_ssim

    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (1, 181, 197, 3))  # odd sides: the padding counts too
    images = np.clip(base + rng.normal(0, 40, (3, 181, 197, 3)), 0, 255).astype(np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for scales, window in ((5, 11), (3, 7), (2, 5), (1, 3)):
        found = pairwise_ms_ssim(images, scales, window)
        for value, (i, j) in zip(found, ((0, 1), (0, 2), (1, 2)), strict=True):
            theirs = ms_ssim(x[i : i + 1], x[j : j + 1], data_range=1, win_size=window, weights=list(exponents(scales)))
            assert value == pytest.approx(theirs.item(), abs=1e-6)


def test_ms_ssim_refuses_images_that_are_too_small() -> None:
    from evaluators.structural import pairwise_ms_ssim

    with pytest.raises(SisError, match="5 scales and window 11 does not fit images of 64x64"):
        pairwise_ms_ssim(np.zeros((2, 64, 64, 3), np.uint8), 5, 11)
    np.testing.assert_allclose(pairwise_ms_ssim(np.zeros((2, 64, 64, 3), np.uint8), 3, 7), [1.0], atol=1e-6)


def test_diversity_is_a_mean_over_pairs_then_maps() -> None:
    rows = partial(["a", "b"], [0, 0], pairs=np.array([[1, 2, 3], [5, 5, 5]], np.float32))
    judge = Judge(card(), SPACE)
    np.testing.assert_allclose(lpips.finish(rows, np.array([[1.0, 1], [2, 0]]), judge).value, [3.5, 2])


def test_throughput_is_undefined_where_nothing_was_sampled() -> None:
    rows = partial([], [])
    facts = {"role": "contestant", "sampling_seconds": 4.0, "rows": 8}
    facts |= {"device": "cpu", "threads": 1, "batch_size": 2}
    assert throughput.finish(rows, np.ones((1, 0)), Judge(card(), SPACE, meta=facts)).value[0] == 2
    for change in ({"role": "control"}, {"sampling_seconds": None}):
        found = throughput.finish(rows, np.ones((1, 0)), Judge(card(), SPACE, meta=facts | change))
        assert np.isnan(found.value[0])
        assert found.note == "nothing was sampled"


def test_bootstrap_weights_depend_on_seed_replicate_and_number_of_maps_only() -> None:
    a = multiplicities(7, 4, 10)
    np.testing.assert_array_equal(a, multiplicities(7, 4, 10))
    np.testing.assert_array_equal(a[:2], multiplicities(7, 2, 10))
    assert (a.sum(1) == 10).all()
    assert (a != multiplicities(8, 4, 10)).any()
    assert len({tuple(row) for row in a}) == 4


def test_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(101.0)) == (2.5, 97.5)
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.empty(0))).all()


@pytest.mark.parametrize("stem", stems("metrics"))
def test_every_metric_file_keeps_the_contract(stem: str) -> None:
    metric = find_metric(stem)
    module = metric.module
    assert module.TITLE
    assert module.DIRECTION in ("higher", "lower", "none")
    assert module.RANGE[0] < module.RANGE[1]
    assert module.NEEDS in get_args(Needs)
    assert hasattr(module, "map") == (metric.source == stem and module.NEEDS not in ("meta", "parts"))
    assert metric.source in stems("metrics")
    assert module.name(card())
    assert module.samples(card()) >= 1


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"unknown metric 'mio'.*did you mean 'miou'"):
        find_metric("mio")
    with pytest.raises(SisError, match="unknown segmenter"):
        find_segmenter("drn_x")
