# SPDX-License-Identifier: Apache-2.0
"""FID by name and by value: what the extractor's options do to names, and what the metric says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from feature_rows import SPACE, card, gaussian, judge, ones, rows

from evaluators.bootstrap import multiplicities
from evaluators.feature_sets import check_choice, options_of
from evaluators.frechet import Moments, Target, distance, distances
from evaluators.metric import Batch, Judge
from evaluators.metrics import fid
from sis.errors import SisError


@pytest.mark.parametrize(
    ("name", "extractor", "options"),
    [
        ("fid", "inception", {}),
        ("fid", "inception", {"resize": "pytorch-fid", "dims": 2048, "before": None}),
        ("fid-clean", "inception", {"resize": "clean"}),
        ("fid-tf1", "inception", {"resize": "tf1"}),
        ("fid-sdm256", "inception", {"before": "sdm-256"}),
        ("fid-768", "inception", {"dims": 768}),
        ("fid-clean-64-sdm256", "inception", {"before": "sdm-256", "dims": 64, "resize": "clean"}),
        ("fd-dinov2", "dinov2", {"size": 224}),
        ("fd-dinov2-vits14-448", "dinov2", {"variant": "vits14", "size": 448}),
        ("fd-other-3", "other", {"x": 3}),
    ],
)
def test_the_name_says_what_is_not_usual(name: str, extractor: str, options: dict) -> None:
    assert fid.name(card(extractor, **options)) == name


def test_settings_name_every_option_also_those_left_out_of_the_card() -> None:
    full = {"resize": "pytorch-fid", "dims": 2048, "before": None}
    assert fid.settings(card()) == fid.settings(card(**full))
    assert fid.map_settings(card()) == {"extractor": "inception", "options": full}
    assert fid.settings(card(dims=64)) != fid.settings(card())


def test_unknown_options_and_values_are_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"unknown option 'resise' .*did you mean 'resize'\?"):
        options_of("inception", {"resise": "clean"})
    with pytest.raises(SisError, match=r"unknown dims 2047 .*did you mean '2048'\?"):
        check_choice("dims", 2047, (64, 2048), "x")
    with pytest.raises(SisError, match="unknown dims '64'"):
        check_choice("dims", "64", (64, 2048), "x")


def test_rows_are_the_batchs_features() -> None:
    features = gaussian(0, 2, 3)
    found = fid.map(Batch(["b", "a"], [0, 0], np.empty((2, 1, 1, 3), np.uint8), features=features), judge(features))
    assert found.image_ids == ["a", "b"]
    np.testing.assert_array_equal(found.columns["features"], features[::-1])


def test_the_value_is_the_distance_and_replicates_are_exact_where_rows_abound() -> None:
    x, y, w = gaussian(1, 60, 5), gaussian(2, 70, 5, 0.5), multiplicities(0, 6, 60)
    found = fid.finish(rows(x), ones(60), judge(y))
    assert found.value[0] == pytest.approx(distance(Moments.of(x), Moments.of(y)), rel=1e-9)
    assert found.note == "exact bootstrap"
    np.testing.assert_array_equal(fid.finish(rows(x), w, judge(y)).value, distances(x, w, Moments.of(y)))


def test_few_images_are_named_and_their_replicates_are_of_first_order() -> None:
    x, y, w = gaussian(3, 6, 8), gaussian(4, 30, 8), multiplicities(0, 50, 6)
    found = fid.finish(rows(x), ones(6), judge(y))
    assert found.value[0] == pytest.approx(Target.of(y).distance(x))
    assert found.note == "6 images, 30 real ones for 8 features: a biased estimate; first-order bootstrap"
    replicates = fid.finish(rows(x), w, judge(y)).value
    assert replicates.std() > 0
    assert replicates.mean() == pytest.approx(found.value[0], abs=4 * replicates.std() / np.sqrt(50))


def test_several_samples_of_a_map_are_drawn_together() -> None:
    from evaluators.partial import partial

    x, y = gaussian(5, 120, 4), gaussian(6, 50, 4)
    both = partial([f"{i // 2:03d}" for i in range(120)], [i % 2 for i in range(120)], features=x)
    w = multiplicities(0, 3, 60)
    expected = distances(x, np.repeat(w, 2, axis=1), Moments.of(y))
    np.testing.assert_allclose(fid.finish(both, w, judge(y)).value, expected, rtol=1e-12)


def test_one_image_is_undefined_and_one_real_image_refused() -> None:
    found = fid.finish(rows(gaussian(7, 1, 3)), np.ones((2, 1)), judge(gaussian(8, 5, 3)))
    assert np.isnan(found.value).all() and len(found.value) == 2 and found.note == "needs 2 images or more"
    for real in (None, rows(gaussian(8, 1, 3))):
        with pytest.raises(SisError, match="features of 2 real images or more, found"):
            fid.finish(rows(gaussian(7, 3, 3)), ones(3), Judge(card(), SPACE, reference=real))
