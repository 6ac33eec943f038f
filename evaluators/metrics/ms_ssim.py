# SPDX-License-Identifier: Apache-2.0
"""MS-SSIM diversity: how alike in structure are samples of one label map? Lower is more diverse.

The scales and the window come from the protocol; with 5 and 11 this is the usual MS-SSIM.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.groups import mean_of_maps, pair_row
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "MS-SSIM diversity"
UNIT, DIRECTION, RANGE = "", "lower", (0.0, 1.0)
NEEDS, VERSION = "groups", 1


def name(card: ProtocolCard) -> str:
    return "ms-ssim"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"scales": card.ms_ssim.scales, "window": card.ms_ssim.window, "sigma": 1.5, "pairs": "all"}


def samples(card: ProtocolCard) -> int:
    return card.samples.diversity


def map(batch: Batch, judge: Judge) -> Partial:
    from evaluators.structural import pairwise_ms_ssim

    return pair_row(batch, pairwise_ms_ssim(batch.images, judge.card.ms_ssim.scales, judge.card.ms_ssim.window))


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_maps(rows, weights)
