# SPDX-License-Identifier: Apache-2.0
"""Ranks count only significant rivals, and refuse to compare what is not comparable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sis.errors import SisError
from sis.publish.ranking import rank_scores, significantly_better, standings

SHARED = np.random.default_rng(0).normal(size=300)


def _row(run: str, value: float | None, own: float = 0.1, **given: Any) -> dict[str, Any]:
    noise = np.random.default_rng(sum(run.encode())).normal(size=300)
    replicates = [] if value is None else (value + 5 * SHARED + own * noise).tolist()
    row = {
        "dataset": "d", "protocol_id": "0" * 16, "metric": "miou", "class_name": "", "direction": "higher",
        "stand_in": "", "role": "contestant", "run_id": run, "value": value, "replicates": replicates,
    }  # fmt: skip
    return row | given


def _ranks(rows: list[dict[str, Any]]) -> list[int | None]:
    return [None if rank is pd.NA else int(rank) for rank in rank_scores(pd.DataFrame(rows))["rank"]]


def test_paired_differences_separate_runs_whose_intervals_overlap() -> None:
    # Each interval is about +-10 wide, yet the runs share their label maps and differ by 1 almost surely.
    assert _ranks([_row("a", 50.0), _row("b", 49.0), _row("c", 48.0)]) == [1, 2, 3]


def test_runs_that_cannot_be_told_apart_share_a_rank() -> None:
    rows = [_row("a", 50.0, own=2.0), _row("b", 49.9, own=2.0), _row("c", 30.0)]
    assert _ranks(rows) == [1, 1, 3]
    assert [s.mark for s in standings(pd.DataFrame(rows)).values()] == ["best", "best", "second"]


def test_lower_is_better_turns_the_order_round() -> None:
    assert _ranks([_row("a", 50.0, direction="lower"), _row("b", 40.0, direction="lower")]) == [2, 1]


def test_controls_are_not_ranked_and_do_not_push_others_down() -> None:
    assert _ranks([_row("real", 90.0, role="control"), _row("a", 50.0)]) == [None, 1]


def test_null_values_stand_ins_directionless_and_intervalless_scores_are_not_ranked() -> None:
    assert _ranks([_row("a", None), _row("b", 1.0)]) == [None, 1]
    assert _ranks([_row("a", 2.0, stand_in="x"), _row("b", 1.0, stand_in="x")]) == [None, None]
    assert _ranks([_row("a", 2.0, direction="none")]) == [None]
    assert _ranks([_row("a", 2.0, replicates=[]), _row("b", 1.0, replicates=None)]) == [None, None]


def test_mixing_protocol_ids_is_refused() -> None:
    rows = pd.DataFrame([_row("a", 50.0), _row("b", 49.0, protocol_id="f" * 16)])
    with pytest.raises(SisError, match="protocol_id cannot share a rank"):
        standings(rows)
    assert _ranks(rows.to_dict("records")) == [1, 1]  # two columns, each with its own first


def test_columns_that_mix_directions_or_repeat_a_run_are_refused() -> None:
    with pytest.raises(SisError, match="direction"):
        standings(pd.DataFrame([_row("a", 1.0), _row("b", 2.0, direction="lower")]))
    with pytest.raises(SisError, match="two values"):
        standings(pd.DataFrame([_row("a", 1.0), _row("a", 2.0)]))


def test_unpaired_replicates_are_refused_and_undefined_ones_left_out() -> None:
    with pytest.raises(SisError, match="cannot be paired"):
        significantly_better(np.ones(3), np.ones(4), "higher")
    assert significantly_better(np.array([2.0, np.nan, 2.1]), np.array([1.0, 5.0, 1.0]), "higher")
    assert not significantly_better(np.array([2.0, np.nan]), np.array([1.0, 1.0]), "higher")
    assert not significantly_better(np.ones(5), np.ones(5), "higher")
