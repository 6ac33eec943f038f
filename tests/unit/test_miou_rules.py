# SPDX-License-Identifier: Apache-2.0
"""Scores of a confusion matrix: class rules, void, absent classes, and what a protocol's rule is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluators.confusion import (
    class_accuracy,
    class_iou,
    confusions,
    frequency_weighted_iou,
    judged,
    mean_of_classes,
    pixel_accuracy,
    rule_of,
)
from evaluators.metric import Judge
from evaluators.metrics import fwiou, mean_accuracy
from evaluators.partial import Partial, partial
from sis.config.files import label_space, named
from sis.config.judges import ClassRule
from sis.config.protocols import ProtocolCard
from sis.data.labels import LabelSpace
from sis.errors import SisError

#: a: 6 of 8 pixels found; b: 2 of 4; c: never labelled, twice predicted; d: nowhere.
COUNTS = np.array([[[6, 1, 1, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]], float)
CARD = named("protocols", "scenes-tiny", ProtocolCard)


def table(count: int, void: int | None = 255) -> LabelSpace:
    classes = [{"id": i, "name": f"class {i}", "colour": [i, 0, 0], "ignored": i == 1} for i in range(count)]
    return LabelSpace.model_validate({"name": "some", "void": void, "classes": classes})


@pytest.mark.parametrize(
    ("rule", "ious"), [("union", [6 / 9, 2 / 5, 0]), ("gt", [6 / 9, 2 / 5]), ("all", [6 / 9, 2 / 5, 0, 0])]
)
def test_the_rule_decides_which_classes_are_averaged(rule: ClassRule, ious: list[float]) -> None:
    found = class_iou(COUNTS, rule)
    np.testing.assert_allclose(found[~np.isnan(found)], 100 * np.array(ious))
    np.testing.assert_allclose(mean_of_classes(found), [100 * np.mean(ious)])


def test_accuracies_by_hand() -> None:
    np.testing.assert_allclose(class_accuracy(COUNTS), [[75, 50, np.nan, np.nan]])
    np.testing.assert_allclose(mean_of_classes(class_accuracy(COUNTS)), [62.5])
    np.testing.assert_allclose(pixel_accuracy(COUNTS), [100 * 8 / 12])
    np.testing.assert_allclose(frequency_weighted_iou(COUNTS), [100 * (8 / 12 * 6 / 9 + 4 / 12 * 2 / 5)])


def test_nothing_labelled_is_undefined() -> None:
    empty = np.zeros((2, 3, 3))
    for values in (pixel_accuracy(empty), frequency_weighted_iou(empty), mean_of_classes(class_accuracy(empty))):
        assert np.isnan(values).all() and values.shape == (2,)


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_counting_equals_a_loop_over_classes_and_images_add_up(seed: int, count: int) -> None:
    rng, space = np.random.default_rng(seed), table(7)
    ids = space.evaluated_ids
    labels = rng.choice([*range(7), 255], (count, 5, 6)).astype(np.uint8)
    predicted = rng.choice(ids, (count, 5, 6)).astype(np.uint8)
    found = confusions(labels, predicted, space)
    for i, a in enumerate(ids):
        for j, b in enumerate(ids):
            np.testing.assert_array_equal(found[:, i, j], ((labels == a) & (predicted == b)).sum((1, 2)))
    np.testing.assert_array_equal(
        found.sum(0), confusions(labels.reshape(1, -1, 6), predicted.reshape(1, -1, 6), space)[0]
    )


def test_ids_that_no_score_counts_are_refused_in_predictions_only() -> None:
    space = table(4)
    labels = np.array([[[0, 1, 255, 3]]], np.uint8)
    assert confusions(labels, np.array([[[0, 0, 0, 3]]], np.uint8), space).sum() == 2
    for stray in (1, 255, 200):
        with pytest.raises(SisError, match=f"ids that no score counts: {stray} - check its label table"):
            confusions(labels, np.array([[[0, stray, 0, 3]]], np.uint8), space)


def test_two_hundred_and_fifty_classes_fit() -> None:
    space = table(250)
    labels = np.arange(250, dtype=np.uint8).reshape(1, 10, 25)
    predicted = np.where(labels == 1, 0, labels).astype(np.uint8)
    np.testing.assert_array_equal(confusions(labels, predicted, space)[0], np.eye(249))


def rows(counts: NDArray[np.float64]) -> tuple[Judge, Partial]:
    judge = Judge(CARD, label_space("scenes"))
    return judge, partial([f"m{i}" for i in range(len(counts))], [0] * len(counts), confusion=counts.astype(np.int32))


def test_metrics_read_the_confusions_of_miou() -> None:
    judge, read = rows(np.concatenate([COUNTS, COUNTS.transpose(0, 2, 1)]))
    weights = np.array([[1.0, 0], [1, 1]])
    for module, score in (
        (mean_accuracy, lambda n: mean_of_classes(class_accuracy(n))),
        (fwiou, frequency_weighted_iou),
    ):
        found = module.finish(read, weights, judge).value
        np.testing.assert_allclose(found, np.concatenate([score(COUNTS), score(COUNTS + COUNTS.transpose(0, 2, 1))]))
        assert module.SOURCE == "miou"
    judge, nothing = rows(np.zeros((2, 4, 4)))
    assert mean_accuracy.finish(nothing, weights, judge).note == "every pixel is void"


def test_the_rule_is_the_protocols_else_the_published_segmenters_else_union() -> None:
    assert rule_of(CARD.model_copy(update={"class_rule": "all"})) == "all"
    assert rule_of(CARD.model_copy(update={"class_rule": None})) == "union"
    assert rule_of(CARD.model_copy(update={"class_rule": None, "segmenter": None})) == "union"
    assert judged("miou", CARD) == "miou"
    published = CARD.model_copy(update={"class_rule": None, "segmenter": "coco-direct"})
    assert (rule_of(published), judged("miou", published)) == ("gt", "miou-coco-direct")
