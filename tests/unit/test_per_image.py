# SPDX-License-Identifier: Apache-2.0
"""What metrics say of single images, against the metrics themselves."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from measured_sets import CARD, LABELS, real_rows, rows

from evaluators.discovery import MetricFile, find_metric
from evaluators.metric import Judge
from evaluators.partial import Partial, partial
from evaluators.per_image import comparable, has_per_image, meaning, of_maps, per_image

MAPS = 30
JUDGE = Judge(CARD, LABELS, None, real_rows(40)["fd"])


def values(stem: str, found: Partial, judge: Judge = JUDGE) -> np.ndarray:
    out = per_image(find_metric(stem), found, judge)
    assert out is not None and out.dtype == np.float64 and out.shape == (len(found),)
    return out


def confusions(*matrices: list[list[int]]) -> Partial:
    counts = np.array(matrices, np.int32)
    return partial([f"m{i}" for i in range(len(counts))], [0] * len(counts), confusion=counts)


def test_iou_of_an_image_averages_the_classes_of_its_label_map() -> None:
    # Class 0: 6 of 8 labelled right, and 1 more seen: 6 / 9. Class 1: 1 of 2, 2 more seen: 1 / 4. Class 2 is only seen.
    found = confusions([[6, 2, 0], [1, 1, 0], [0, 0, 0]], [[0, 0, 4], [0, 0, 0], [0, 0, 0]], [[0] * 3] * 3)
    assert values("miou", found)[:2] == pytest.approx([100 * (6 / 9 + 1 / 4) / 2, 0])
    assert values("accuracy", found)[:2] == pytest.approx([70, 0])
    assert math.isnan(values("miou", found)[2]) and math.isnan(values("accuracy", found)[2]), "all void"


def test_a_single_image_has_the_value_of_the_metric_where_all_its_classes_are_asked_for() -> None:
    counts = np.random.default_rng(0).integers(1, 50, (1, 10, 10)).astype(np.int32)
    found = partial(["m"], [0], confusion=counts)
    for stem in ("miou", "accuracy"):
        whole = find_metric(stem).module.finish(found, np.ones((1, 1)), JUDGE).value[0]
        assert values(stem, found) == pytest.approx([whole])


@pytest.mark.parametrize("stem", ["lpips", "ms_ssim"])
def test_values_of_label_maps_average_to_the_diversity(stem: str) -> None:
    found = rows(np.linspace(0.2, 0.9, MAPS), 0)[stem]
    whole = find_metric(stem).module.finish(found, np.ones((1, MAPS)), JUDGE).value[0]
    assert values(stem, found).mean() == pytest.approx(whole)


@pytest.mark.parametrize("stem", ["mask_accuracy", "style", "aesthetic"])
def test_values_of_images_average_to_the_metrics_that_are_means(stem: str) -> None:
    found = partial([f"m{i}" for i in range(MAPS)], [0] * MAPS, percent=np.linspace(10, 90, MAPS))
    whole = find_metric(stem).module.finish(found, np.ones((1, MAPS)), JUDGE).value[0]
    assert values(stem, found).mean() == pytest.approx(whole) == 50


@pytest.mark.parametrize("stem", ["precision", "density"])
def test_values_of_images_average_to_precision_and_density(stem: str) -> None:
    found = rows(np.linspace(0.2, 1, MAPS), 0)["fd"]
    whole = find_metric(stem).module.finish(found, np.ones((1, MAPS)), JUDGE).value[0]
    assert values(stem, found).mean() == pytest.approx(whole) and 0 < whole < 1.5


def test_contributions_to_a_distance_are_its_slopes_and_strangers_push_it_away() -> None:
    found = rows(np.linspace(0.2, 1, MAPS), 0)["fd"]
    module, step = find_metric("fd").module, 1e-5
    up, down = (np.ones((MAPS, MAPS)) + s * step * np.eye(MAPS) for s in (1, -1))
    slopes = (module.finish(found, up, JUDGE).value - module.finish(found, down, JUDGE).value) / (2 * step)
    np.testing.assert_allclose(values("fd", found), slopes, rtol=1e-5, atol=1e-7)
    assert values("fd", found)[:5].mean() > 0 > values("fd", found)[-5:].mean()


@pytest.mark.parametrize("stem", ["fd", "fid", "precision", "density"])
def test_without_a_reference_there_is_no_value(stem: str) -> None:
    assert np.isnan(values(stem, rows(np.full(4, 0.5), 0)["fd"], Judge(CARD, LABELS))).all()


def test_what_only_counts_within_a_set_is_not_comparable() -> None:
    assert has_per_image(find_metric("fd")) and not comparable(find_metric("fd"))
    assert comparable(find_metric("miou"))
    assert not has_per_image(find_metric("throughput")) and not comparable(find_metric("throughput"))
    assert per_image(find_metric("throughput"), Partial([], np.empty(0, np.int32), {}), JUDGE) is None
    assert meaning(find_metric("miou")) and not meaning(find_metric("throughput"))


def test_a_metric_file_may_say_itself_what_an_image_is_worth() -> None:
    def own(found: Partial, judge: Judge) -> list[float]:
        return [7.0] * len(found)

    metric = MetricFile("miou", cast(Any, SimpleNamespace(per_image=own)))
    assert per_image(metric, confusions([[1]]), JUDGE) == pytest.approx([7.0])
    assert comparable(metric) and meaning(metric) == ""


def test_label_maps_average_the_values_of_their_samples() -> None:
    found = partial(["b", "b", "a", "c"], [0, 1, 0, 0], confusion=np.zeros((4, 1, 1), np.int32))
    np.testing.assert_array_equal(of_maps(found, np.array([5.0, 1.0, 3.0, math.nan])), [5, 2, math.nan])
