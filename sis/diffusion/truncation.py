# SPDX-License-Identifier: Apache-2.0
"""Where a chain begins that starts from a noised prior: the level mu T, by the paper's rule or as the code has it.

SCP-Diff (Bao et al. 2024, Eq. 6) noises x_prior to mu T and denoises the last mu T steps. Its released code
(AIR-DISCOVER/SCP-Diff-Toolkit @859f671) counts differently, so that the first step of a grid is never reached and
normal noise, too, is denoised from the second step on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sis.diffusion.schedule import Schedule
from sis.errors import SisError

#: `fixed`: every step up to mu T; `release`: as many as the authors' code runs.
Truncation = Literal["fixed", "release"]


class Start(NamedTuple):
    """The steps that are run, and the index of the full schedule that the start is noised to."""

    chain: Schedule
    level: int


def truncated(chain: Schedule, mu: float, total: int, rule: Truncation) -> Start:
    """Cut a chain to its last mu T steps.

    Args:
        chain: the grid of steps, as `Schedule.leading` gives it.
        mu: in (0, 1]; 1 is the whole chain (by the release's rule: all but its first step).
        total: T, the number of steps of the full schedule.
        rule: `fixed` keeps t <= mu T + 1 and noises to exactly the first of them; `release` keeps what
            `released_count` says and noises to mu T - 1.

    Raises SisError for a level that leaves no step, or that the release's rule does not know.
    """
    if not 0 < mu <= 1:
        raise SisError(f"mu is a share of the schedule in (0, 1], found {mu}")
    last = round(mu * total) - 1
    if rule == "fixed":
        count = int(np.sum(chain.timesteps <= round(mu * total, 6) + 1))
    else:
        count = released_count(chain.timesteps, last, total)
    if not count:
        raise SisError(f"mu = {mu} leaves no step of {len(chain)}", fix="raise mu or the number of steps")
    kept = chain.up_to(count)
    return Start(kept, int(kept.timesteps[-1]) if rule == "fixed" else max(last, 0))


def released_count(timesteps: NDArray[np.int64], level: int, total: int = 1000) -> int:
    """How many of a grid's steps (ascending) the released code runs for the level `level` = mu T - 1.

    It looks up the first step at or above the level, adds two, takes that as a share of the grid and runs one step
    fewer; full noise (T - 1) counts as the whole grid. Raises SisError for other levels above the last step, where
    the authors' code ends in an IndexError.
    """
    size = len(timesteps)
    place = size
    if level != total - 1:
        above = np.flatnonzero(timesteps >= level)
        if not len(above):
            raise SisError(
                f"the released code has no step at or above level {level}, its last is {int(timesteps[-1])}",
                fix="use `truncation: fixed`, a smaller mu or more steps",
            )
        place = int(above[0]) + 2
    return int(min(place / size, 1) * size) - 1
