# SPDX-License-Identifier: Apache-2.0
"""IIDM's total score against the rows that the paper prints, and the metrics that its parts become."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from evaluators.check import check_metric
from evaluators.iidm_score import aesthetic_percent, mask_accuracy, total_score
from evaluators.metric import Batch, Finished, Judge
from evaluators.metrics import aesthetic, style, total
from evaluators.metrics import mask_accuracy as m
from sis.config.files import label_space, named
from sis.config.judges import IidmCard
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

PUBLISHED = Path(__file__).parents[2] / "config" / "published"
CARD, LABELS = named("protocols", "scenes-tiny", ProtocolCard), label_space("scenes")
JUDGE = Judge(CARD, LABELS)


def printed(table: str) -> dict[str, dict[str, float]]:
    """The rows of a table of the paper, by method and variant."""
    rows: dict[str, dict[str, float]] = {}
    with (PUBLISHED / f"iidm_{table}.csv").open(newline="") as handle:
        for line in csv.DictReader(handle):
            name = line["method"] + ("/" + line["variant"] if line["variant"] else "")
            rows.setdefault(name, {})[line["metric"]] = float(line["value"])
    return rows


@pytest.mark.parametrize(("table", "count"), [("table1", 6), ("table2", 5)])
def test_every_printed_total_but_one_follows_from_its_row(table: str, count: int) -> None:
    """Two decimals, rounded or cut; the paper's own last row alone is 0.05 too high."""
    rows = printed(table)
    assert len(rows) == count
    for name, row in rows.items():
        found = float(total_score(row["accuracy"], row["aesthetic"], row["style"], row["fid"]))
        if name == "iidm":
            assert (round(found, 2), row["total"]) == (65.22, 65.27)
        else:
            assert row["total"] in (round(found, 2), math.floor(100 * found) / 100), name


def test_total_follows_equation_8_and_caps_fid() -> None:
    assert total_score(80, 50, 20, 30) == pytest.approx(0.8 * (0.2 * 50 + 0.3 * (10 + 50) + 0.5 * 70))
    np.testing.assert_array_equal(total_score(50, 0, -100, [100, 107.49, 250]), [0, 0, 0])
    assert total_score(100, 100, 100, 0) == 100
    assert total_score(np.ones((2, 3)), 1, 1, 1).shape == (2, 3)


def test_mask_accuracy_counts_every_pixel_of_an_image() -> None:
    labels, predicted = np.array([[[0, 1], [2, 255]], [[3, 3], [3, 3]]]), np.array([[[0, 1], [0, 0]], [[3, 3], [3, 0]]])
    np.testing.assert_array_equal(mask_accuracy(labels, predicted), [50, 75])


def test_aesthetic_percent_is_ten_times_the_expected_rating() -> None:
    chances = np.zeros((3, 10), np.float32)
    chances[0, 0] = chances[1, 9] = 1
    chances[2] = 0.1
    np.testing.assert_allclose(aesthetic_percent(chances), [10, 100, 55])
    for wrong in (np.ones((2, 5)) / 5, np.ones((2, 10)), np.eye(10)[:2] * 2 - np.eye(10)[2:4]):
        with pytest.raises(SisError, match="chances of ten ratings"):
            aesthetic_percent(wrong)


def test_metrics_are_means_over_images_of_their_part() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    ids = LABELS.evaluated_ids
    labels = np.full((3, 8, 8), ids[0], np.uint8)
    predicted = labels.copy()
    predicted[1], predicted[2, :4] = ids[1], ids[1]
    chances = np.eye(10, dtype=np.float32)[[0, 4, 9]]
    batch = Batch(["a", "b", "c"], [0, 0, 0], images, labels, predicted, chances, images[[0, 1, 0]])
    weights = np.array([[1.0, 1, 1], [0, 2, 1]])
    found = {n: f.finish(f.map(batch, JUDGE), weights, JUDGE).value for n, f in (("M", m), ("A", aesthetic))}
    np.testing.assert_allclose(found["M"], [50, 50 / 3])
    np.testing.assert_allclose(found["A"], [(10 + 50 + 100) / 3, (100 + 100) / 3])
    rows = style.map(batch, JUDGE)
    np.testing.assert_allclose(rows.columns["percent"][:2], 100)
    assert rows.columns["percent"][2] < 90


def test_names_say_which_histogram_and_which_network() -> None:
    other = CARD.model_copy(update={"iidm": IidmCard(style="lab_channel_mean_256")})
    assert (style.name(CARD), style.name(other)) == ("style-hue180", "style-lab_channel_mean_256")
    assert (total.name(CARD), total.name(other)) == ("total-hue180", "total-lab_channel_mean_256")
    assert aesthetic.name(CARD) == "aesthetic-nima"
    wrong = CARD.model_copy(update={"iidm": IidmCard(style="hue181")})
    with pytest.raises(SisError, match="did you mean 'hue180'"):
        style.settings(wrong)


def test_the_total_is_made_replicate_by_replicate_and_passes_notes_on() -> None:
    parts = {
        "mask_accuracy": Finished(np.array([90.0, 80])),
        "aesthetic": Finished(np.array([50.0, 40])),
        "style": Finished(np.array([10.0, 20])),
        "fid": Finished(np.array([130.0, 30]), note="few images"),
    }
    found = total.combine(parts, CARD)
    np.testing.assert_allclose(found.value, total_score([90, 80], [50, 40], [10, 20], [130, 30]))
    assert found.note == "fid: few images"


@pytest.mark.parametrize("name", ["mask_accuracy", "mean_accuracy", "fwiou", "style", "total"])
def test_the_metrics_keep_the_contract(name: str) -> None:
    assert len(list(check_metric(name))) >= 3
