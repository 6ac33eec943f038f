# SPDX-License-Identifier: Apache-2.0
"""Total score T of IIDM (Eq. 8): mask accuracy times a mean of aesthetics, style and FID, the latter capped at 100."""

from __future__ import annotations

from typing import Any

from evaluators.iidm_score import FID_CAP, total_score
from evaluators.metric import Finished
from sis.config.protocols import ProtocolCard

TITLE = "Total score of IIDM"
UNIT, DIRECTION, RANGE = "%", "higher", (0.0, 100.0)
NEEDS, VERSION = "parts", 1
PARTS = ("mask_accuracy", "aesthetic", "style", "fid")


def name(card: ProtocolCard) -> str:
    return f"total-{card.iidm.style}"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"weights": {"aesthetic": 0.2, "style": 0.3, "fid": 0.5}, "fid_cap": FID_CAP}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def combine(parts: dict[str, Finished], card: ProtocolCard) -> Finished:
    value = total_score(*(parts[part].value for part in PARTS))
    note = "; ".join(f"{part}: {parts[part].note}" for part in PARTS if parts[part].note)
    return Finished(value, note=note)
