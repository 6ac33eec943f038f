# SPDX-License-Identifier: Apache-2.0
"""p-values of bootstrap replicates and Holm's correction, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.bootstrap import interval, multiplicities
from evaluators.significance import holm, p_value

P_VALUES = st.lists(st.floats(0, 1), max_size=8)


@pytest.mark.parametrize(
    ("replicates", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2 / 5),
        ([-1.0] * 99, 2 / 100),
        ([1.0] * 97 + [-1.0] * 2, 2 * 3 / 100),
        ([0.0, 1.0, 1.0], 2 * 2 / 4),
        ([0.0, 0.0, 0.0], 1.0),
        ([-1.0, 1.0], 1.0),
        ([math.nan, 1.0, math.nan, 2.0], 2 / 3),
    ],
)
def test_the_p_value_doubles_the_smaller_tail(replicates: list[float], expected: float) -> None:
    assert p_value(np.array(replicates)) == pytest.approx(expected)


def test_without_a_defined_replicate_there_is_no_p_value() -> None:
    assert math.isnan(p_value(np.array([math.nan]))) and math.isnan(p_value(np.empty(0)))


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_lies_between_the_p_value_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= min(1, len(p_values) * p) + 1e-12 for p, q in zip(p_values, adjusted, strict=True))
    assert [q for _, q in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)


@given(st.integers(39, 400), st.integers(0, 10_000), st.floats(-3, 3))
def test_where_p_is_below_5_percent_the_interval_excludes_zero(count: int, seed: int, shift: float) -> None:
    replicates = np.random.default_rng(seed).normal(shift, 1, count)
    low, high = interval(replicates)
    if p_value(replicates) < 0.05:
        assert low > 0 or high < 0


def test_of_equal_sets_few_are_called_different() -> None:
    """300 pairs of sets of one kind, 60 label maps each: about 5 % are below 5 % (three standard errors: 3.8 %)."""
    rng, weights = np.random.default_rng(0), multiplicities(20, 200, 60)
    gaps = rng.gamma(2, 1, (300, 60)) - rng.gamma(2, 1, (300, 60))
    replicates = gaps @ weights.T / 60
    assert np.mean([p_value(r) < 0.05 for r in replicates]) < 0.05 + 0.038
