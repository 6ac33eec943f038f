# SPDX-License-Identifier: Apache-2.0
"""Preparation policies: how raw pictures come to a dataset's size. One file a policy, found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sis.config.cards import Preparation
from sis.data.labels import LabelSpace
from sis.data.pair import Pair
from sis.data.resize import Size
from sis.errors import SisError, did_you_mean

#: `draw(purpose, low, high)` gives a whole number in low..high-1; the harness keys it by (seed, epoch, image id).
Draw = Callable[[str, int, int], int]


class Policy:
    """One way to bring pictures to `size` (height, width); `release` asks for the authors' defects as well."""

    #: Whether training cuts a new piece each time, from pictures stored larger than `size`.
    AUGMENTS: ClassVar[bool] = False

    def __init__(self, size: Size, labels: LabelSpace, release: bool) -> None:
        self.size, self.labels, self.release = size, labels, release

    def channels(self, pair: Pair) -> NDArray[np.uint8]:
        """The pair's label map as one-hot channels `(h, w)`, void last.

        Ids that a released filter invented are void here; priors read them as they are stored. Raises SisError naming
        the image for ids outside the table otherwise.
        """
        label, void = pair.label, self.labels.void
        if self.release and void is not None:
            label = np.where((label < self.labels.count) | (label == void), label, np.uint8(void))
        return self.labels.channels(label, where=pair.image_id)

    def view(self, pair: Pair) -> Pair:
        """The pair at `size`, without chance: what is judged, and what methods see of an unaugmented split."""
        raise NotImplementedError

    def keep(self, pair: Pair) -> Pair:
        """What is stored of a pair whose split is augmented; `view` and `augment` of it equal those of the pair."""
        return pair

    def augment(self, pair: Pair, draw: Draw) -> Pair:
        """The pair at `size`, cut anew; mirroring is left to the training loop."""
        return self.view(pair)


def policy_of(preparation: Preparation, size: Size, labels: LabelSpace) -> Policy:
    """The policy that a card names. Raises SisError with the nearest name when there is none."""
    known = [p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__"]
    if preparation.policy not in known:
        raise SisError(
            f"unknown preparation policy {preparation.policy!r}", fix=did_you_mean(preparation.policy, known)
        )
    module = importlib.import_module(f"sis.data.policies.{preparation.policy}")
    return module.POLICY(size, labels, preparation.fidelity == "release")
