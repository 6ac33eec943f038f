# SPDX-License-Identifier: Apache-2.0
"""Aesthetic score A of IIDM: the rating from 1 to 10 that a network expects people to give, in percent of 10.

The contest's own network was never published; NIMA is what IIDM cites (Talebi and Milanfar 2018).
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from evaluators.groups import mean_of_rows
from evaluators.iidm_score import aesthetic_percent
from evaluators.metric import Batch, Finished, Judge
from evaluators.partial import Partial, partial
from sis.config.judges import FeaturesCard
from sis.config.protocols import ProtocolCard

TITLE = "Aesthetic score"
UNIT, DIRECTION, RANGE = "%", "higher", (10.0, 100.0)
NEEDS, VERSION = "features:extractor", 1


def features(card: ProtocolCard) -> FeaturesCard:
    return card.iidm.aesthetic


def name(card: ProtocolCard) -> str:
    return f"aesthetic-{card.iidm.aesthetic.name}"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {"network": card.iidm.aesthetic.name, "options": dict(card.iidm.aesthetic.options)}


def samples(card: ProtocolCard) -> int:
    return card.samples.quality


def map(batch: Batch, judge: Judge) -> Partial:
    return partial(batch.image_ids, batch.sample_indices, percent=aesthetic_percent(batch.features))


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    return mean_of_rows(rows, "percent", weights)
