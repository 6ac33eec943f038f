# SPDX-License-Identifier: Apache-2.0
"""LPIPS diversity as the SDM paper measures it: squashed to 256 and 299, normalised twice, AlexNet."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.groups import mean_of_maps, pair_row
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

TITLE = "LPIPS diversity as in SDM"
UNIT, DIRECTION, RANGE = "", "higher", (0.0, float("inf"))
NEEDS, VERSION = "groups", 1
BACKBONE = "lpips"


def name(card: ProtocolCard) -> str:
    return "lpips-sdm"


def settings(card: ProtocolCard) -> dict[str, Any]:
    if card.lpips.net != "alex":
        fix = "list it as {metric: lpips_sdm, lpips: {net: alex}}"
        raise SisError(f"SDM's LPIPS is on AlexNet, not on {card.lpips.net}", fix=fix)
    return {"net": "alex", "heads": "v0.1", "pairs": "all", "squashed": [256, 299], "normalised": "twice"}


def samples(card: ProtocolCard) -> int:
    return card.samples.diversity


def map(batch: Batch, judge: Judge) -> Partial:
    from evaluators.lpips_sdm import SdmLpips

    if judge.backbone is None:
        raise SisError("LPIPS needs its backbone")
    return pair_row(batch, SdmLpips(judge.backbone.net).pairwise(batch.images))


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_maps(rows, weights)
