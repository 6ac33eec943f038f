# SPDX-License-Identifier: Apache-2.0
"""The kernel distance against its definition written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
from feature_rows import card, gaussian, judge, ones, rows
from numpy.typing import NDArray

from evaluators import kernel_distance
from evaluators.bootstrap import multiplicities
from evaluators.kernel_distance import kernel_distances, subset_distances
from evaluators.metrics import kid, kid_subsets


def k(x: NDArray, y: NDArray) -> float:
    return (float(x.astype(float) @ y.astype(float)) / len(x) + 1) ** 3


def by_definition(x: NDArray, y: NDArray, w: NDArray) -> float:
    """Weighted means over pairs of distinct rows, and over all pairs of the two sets."""
    n, m = len(x), len(y)
    own = [(w[i] * w[j], k(x[i], x[j])) for i in range(n) for j in range(n) if i != j]
    real = [k(y[i], y[j]) for i in range(m) for j in range(m) if i != j]
    across = [(w[i], k(x[i], y[j])) for i in range(n) for j in range(m)]
    return float(
        np.average([v for _, v in own], weights=[u for u, _ in own])
        + np.mean(real)
        - 2 * np.average([v for _, v in across], weights=[u for u, _ in across])
    )


@pytest.mark.parametrize("at_once", [1, 20, 2**23])
def test_kid_is_its_definition_for_every_resample_and_strip(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = gaussian(0, 9, 5), gaussian(1, 12, 5, 0.5, 0.4)
    w = np.concatenate([ones(9), multiplicities(0, 4, 9)])
    monkeypatch.setattr(kernel_distance, "_AT_ONCE", at_once)
    np.testing.assert_allclose(kernel_distances(x, w, y), [by_definition(x, y, row) for row in w], rtol=1e-10)


def test_it_is_unbiased_and_resampling_adds_no_bias() -> None:
    values, resampled = [], []
    for seed in range(200):
        x, y = gaussian(2 * seed, 12, 3), gaussian(2 * seed + 1, 12, 3)
        found = kernel_distances(x, np.concatenate([ones(12), multiplicities(seed, 20, 12)]), y)
        values.append(found[0])
        resampled.append(found[1:].mean())
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error  # the sets are of one distribution
    assert abs(np.mean(resampled)) < 3 * error


def test_weight_on_one_row_alone_is_undefined() -> None:
    assert np.isnan(kernel_distances(gaussian(2, 3, 2), np.array([[3.0, 0, 0]]), gaussian(3, 3, 2))).all()


def test_subsets_of_everything_are_the_whole_and_smaller_ones_scatter_about_it() -> None:
    x, y = gaussian(4, 40, 4), gaussian(5, 40, 4, 1.0, 0.3)
    whole = kernel_distances(x, ones(40), y)[0]
    np.testing.assert_allclose(subset_distances(x, y, 3, 40, 0), whole, rtol=1e-10)
    parts = subset_distances(x, y, 300, 20, 0)
    assert parts.std() > 0
    assert parts.mean() == pytest.approx(whole, abs=4 * parts.std() / np.sqrt(300))
    np.testing.assert_array_equal(parts, subset_distances(x, y, 300, 20, 0))
    assert (parts != subset_distances(x, y, 300, 20, 1)).any()


def test_the_metric_reads_fids_rows_and_says_how_it_estimates() -> None:
    x, y = gaussian(6, 8, 4), gaussian(7, 10, 4)
    found = kid.finish(rows(x), ones(8), judge(y))
    assert found.value[0] == pytest.approx(kernel_distances(x, ones(8), y)[0])
    assert (kid.SOURCE, kid.NEEDS) == ("fid", "features:extractor")
    assert kid.name(card()) == "kid" and kid.name(card(resize="clean")) == "kid-clean"
    assert kid.settings(card())["estimate"] == "all pairs, unbiased"
    assert np.isnan(kid.finish(rows(x[:1]), ones(1), judge(y)).value[0])


def test_the_mean_of_subsets_has_a_name_of_its_own_and_no_interval() -> None:
    x, y = gaussian(8, 8, 4), gaussian(9, 10, 4)
    found = kid_subsets.finish(rows(x), ones(8), judge(y))
    expected = subset_distances(x, y, 100, 8, 0)
    assert found.value[0] == pytest.approx(expected.mean())
    assert found.note.startswith("100 subsets of 8 that scatter by")
    assert np.isnan(kid_subsets.finish(rows(x), np.ones((2, 8)), judge(y)).value).all()
    assert kid_subsets.name(card()) == "kid-subsets"
