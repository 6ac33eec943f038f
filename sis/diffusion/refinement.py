# SPDX-License-Identifier: Apache-2.0
"""IIDM's rounds of refinement: which part of the schedule each goes through, under three named recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeVar

from sis.errors import SisError

T = TypeVar("T")


class Round(NamedTuple):
    """One pass from a noised picture to a clean one.

    start: share of the schedule that the picture is noised to. steps: as in `Schedule.respaced`; empty for all of the
    schedule. guidance: scale of classifier-free guidance, 1 for none.
    """

    start: float
    steps: int | str
    guidance: float


@dataclass(frozen=True)
class Recipe:
    """What a recipe's name stands for.

    late: the picture is noised to one index above the first network evaluation's (see `style_start.start_at`).
    """

    rounds: tuple[Round, ...]
    sampler: Literal["ddim", "ddpm"]
    late: bool
    from_noise: bool = False


RECIPES: Mapping[str, Recipe] = {
    # The three calls of the authors' test script, with their bare indices 300, 320 and 20 as shares of the schedule.
    "release": Recipe(
        (Round(0.6, "ddim500", 3.5), Round(0.64, "ddim500", 3.7), Round(0.4, "ddim50", 3.7)), "ddim", late=True
    ),
    # Algorithm 2 as it is printed: T = 320 of 1000 in every round, ancestral steps, not a word of guidance.
    "paper": Recipe((Round(0.32, "", 1.0),) * 3, "ddpm", late=False),
    # How the baseline of Tables 1 and 2 was drawn is not said; these are the first round's settings.
    "dm": Recipe((Round(1.0, "ddim500", 3.5),), "ddim", late=False, from_noise=True),
}


def planned(
    name: str,
    count: int = 0,
    start: Sequence[float] = (),
    steps: Sequence[int | str] = (),
    guidance: Sequence[float] = (),
) -> list[Round]:
    """The rounds of a recipe, with other values where some are given.

    Args:
        name: of the recipe.
        count: of rounds; 0 for as many as values are given, or else as the recipe has.
        start, steps, guidance: one value for all rounds or one for each; empty for the recipe's own, the last of which
            serves all further rounds.

    Raises SisError for values that do not fit the number of rounds or the recipe.
    """
    recipe, given = RECIPES[name], {"start": start, "steps": steps, "guidance": guidance}
    longest = max(len(values) for values in given.values())
    count = count or (longest if longest > 1 else len(recipe.rounds))
    for key, values in given.items():
        if len(values) > 1 and len(values) != count:
            fix = "give one value for all rounds, or one for each"
            raise SisError(f"{key} has {len(values)} values for {count} rounds", fix=fix)
        if len(values) > 1 and name == "paper":
            fix = "give one value, or use `recipe: release`"
            raise SisError(f"Algorithm 2 has the same {key} in every round, found {len(values)} values", fix=fix)
    if recipe.from_noise and (count > 1 or start):
        fix = "use `recipe: release` or `paper`, or leave out start and rounds"
        raise SisError(f"the recipe {name} draws from pure noise, once: it has no start and no further rounds", fix=fix)
    own = list(chain(recipe.rounds, recipe.rounds[-1:] * count))[:count]
    return [
        Round(_at(start, i, own[i].start), _at(steps, i, own[i].steps), _at(guidance, i, own[i].guidance))
        for i in range(count)
    ]


def _at(values: Sequence[T], index: int, otherwise: T) -> T:
    """The value of a round."""
    return (values[index] if len(values) > 1 else values[0]) if values else otherwise
