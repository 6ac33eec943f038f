# SPDX-License-Identifier: Apache-2.0
"""Ranks that count only rivals who are significantly better.

A rank is 1 + the number of contestants that beat a run beyond what the choice of label maps can explain. The
evidence is a paired bootstrap: all runs of one protocol id share the same label-map weights, so the difference
of two runs' replicates is the replicate of their difference, and its 95 % interval either excludes 0 or not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sis.errors import SisError, first_of

Mark = Literal["best", "second", ""]

#: Scores are comparable only within one of these.
GROUP = ["dataset", "protocol_id", "metric", "class_name"]

#: Two-sided confidence of the interval of a difference.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Standing:
    """What a score earned in its column: a rank (None = not ranked) and a typographic mark."""

    rank: int | None = None
    mark: Mark = ""


UNRANKED = Standing()


def significantly_better(ours: np.ndarray, theirs: np.ndarray, direction: str) -> bool:
    """Say whether `ours` beats `theirs` in more than 95 % of the paired bootstrap replicates.

    Args: two float arrays of shape (replicates,) from the same label-map weights; direction "higher" or "lower".
    Replicates that are undefined (NaN) for either run are left out; fewer than two left means no evidence.
    Raises SisError when the arrays differ in length, because then they cannot be paired.
    """
    if ours.shape != theirs.shape:
        raise SisError(
            f"bootstrap replicates cannot be paired: {ours.size} against {theirs.size}",
            fix="evaluate both runs again under the same protocol",
        )
    difference = ours - theirs if direction == "higher" else theirs - ours
    difference = difference[np.isfinite(difference)]
    if difference.size < 2:
        return False
    tail = (1 - CONFIDENCE) / 2
    # The interval excludes 0 in the better direction exactly when its lower end is positive.
    return bool(np.quantile(difference, tail) > 0)


def require_one(scores: pd.DataFrame, columns: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the only combination of `columns` in `scores`; raises SisError when there are several or none.

    `what` names the thing that must not mix them, e.g. "rank".
    """
    found = sorted({tuple(map(str, row)) for row in zip(*(scores[c] for c in columns), strict=True)})
    if len(found) == 1:
        return found[0]
    if not found:
        raise SisError("no scores to compare", fix="evaluate at least one run of this experiment")
    raise SisError(
        f"scores that differ in {' or '.join(columns)} cannot share a {what}",
        where=first_of("/".join(values) for values in found),
        fix="split them: numbers of different protocols are not comparable",
    )


def standings(scores: pd.DataFrame) -> dict[Hashable, Standing]:
    """Rank one column: rows of one dataset, protocol id, metric and class; returns {row index: Standing}.

    Not ranked: controls, null values, stand-in metrics, metrics of direction "none", and scores without bootstrap
    replicates (without an interval nobody can say what is significant).
    Raises SisError for mixed protocols, mixed directions, repeated runs or unpaired replicates.
    """
    require_one(scores, ["dataset", "protocol_id"], "rank")
    require_one(scores, ["metric", "class_name", "direction", "stand_in"], "rank")
    _require_one_row_a_run(scores)
    direction = str(scores["direction"].iloc[0])
    replicates = {
        index: array
        for index, array, rankable in zip(scores.index, _replicates(scores), _rankable(scores), strict=True)
        if rankable and array.size > 0
    }
    earned = placed(
        {index: float(scores.loc[[index], "value"].iloc[0]) for index in replicates},
        direction,
        lambda ours, theirs: significantly_better(replicates[ours], replicates[theirs], direction),
    )
    return {i: earned.get(i, UNRANKED) for i in scores.index}


def placed(
    values: Mapping[Hashable, float], direction: str, beats: Callable[[Hashable, Hashable], bool]
) -> dict[Hashable, Standing]:
    """Place rivals: rank 1 + the number of those that beat them; marks for the leader and all it does not beat.

    values: each rival's number; direction: "higher" or "lower" is better; beats(a, b): a is significantly better.
    """
    ranks = {one: 1 + sum(beats(rival, one) for rival in values if rival != one) for one in values}
    marks: dict[Hashable, Mark] = dict.fromkeys(values, "")
    remaining = list(values)
    steps: Sequence[Mark] = ("best", "second")
    for mark in steps:
        if not remaining:
            break
        leader = (max if direction == "higher" else min)(remaining, key=lambda one: values[one])
        level = {one for one in remaining if one == leader or not beats(leader, one)}
        marks.update(dict.fromkeys(level, mark))
        remaining = [one for one in remaining if one not in level]
    return {one: Standing(ranks[one], marks[one]) for one in values}


def rank_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Rank a whole score table; returns a frame with columns `rank` (Int64, null = not ranked) and `mark`."""
    earned: dict[Hashable, Standing] = {}
    for _, column in scores.groupby(GROUP, sort=True, dropna=False):
        earned.update(standings(column))
    return pd.DataFrame(
        {
            "rank": pd.array([earned[i].rank for i in scores.index], dtype="Int64"),
            "mark": [earned[i].mark for i in scores.index],
        },
        index=scores.index,
    )


def _rankable(scores: pd.DataFrame) -> list[bool]:
    fit = (
        (scores["role"] == "contestant")
        & scores["direction"].isin(["higher", "lower"])
        & (scores["stand_in"] == "")
        & np.isfinite(scores["value"].astype(float))
    )
    return fit.tolist()


def _replicates(scores: pd.DataFrame) -> list[np.ndarray]:
    empty = np.empty(0)
    return [empty if r is None else np.asarray(r, dtype=float).ravel() for r in scores["replicates"]]


def _require_one_row_a_run(scores: pd.DataFrame) -> None:
    repeated = scores.loc[scores["run_id"].duplicated(), "run_id"]
    if len(repeated):
        raise SisError(
            f"a run has two values of {scores['metric'].iloc[0]}",
            where=first_of(sorted(set(repeated))),
            fix="pass each score file once",
        )
