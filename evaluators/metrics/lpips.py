# SPDX-License-Identifier: Apache-2.0
"""LPIPS diversity: how differently do samples of one label map look? (lpips 0.1.4, heads v0.1, [-1, 1])"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.groups import mean_of_maps, pair_row
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

TITLE = "LPIPS diversity"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, float("inf"))
NEEDS, VERSION = "groups", 1
BACKBONE = "lpips"


def name(card: ProtocolCard) -> str:
    return f"lpips-{card.lpips.net}"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"net": card.lpips.net, "heads": "v0.1", "pairs": "all"}


def samples(card: ProtocolCard) -> int:
    return card.samples.diversity


def map(batch: Batch, judge: Judge) -> Partial:
    if judge.backbone is None:
        raise SisError("LPIPS needs its backbone")
    return pair_row(batch, judge.backbone.pairwise(batch.images))


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_maps(rows, weights)
