# SPDX-License-Identifier: Apache-2.0
"""The columns that a protocol would fill on this machine: which are real, and which lack the weights of a network."""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.definition import called
from evaluators.discovery import find_metric
from evaluators.networks import Asked, asked_by
from evaluators.weights import WeightStore
from evaluators.weights_bytes import is_there
from evaluators.weights_converted import converted_path
from sis.config.judges import LpipsCard, SegmenterCard
from sis.config.protocols import Entry, ProtocolCard


@dataclass(frozen=True)
class Column:
    """A number of a protocol.

    name: in score tables; metric: its file's stem; samples: images of a label map that it needs; missing: names of the
    weights that are not here, whose place a stand-in would take.
    """

    name: str
    metric: str
    samples: int
    missing: list[str]


def columns_of(card: ProtocolCard, store: WeightStore) -> list[Column]:
    """Every metric of a protocol. Raises SisError for weights that no list knows and for what is no file."""
    return [_column(entry, store) for entry in card.entries()]


def _column(entry: Entry, store: WeightStore) -> Column:
    metric, card = find_metric(entry.stem), entry.card
    asked = [asked_by(find_metric(find_metric(part).source), card) for part in metric.parts or (entry.stem,)]
    missing = [name for a in asked if a is not None for name in _missing(a, store)]
    return Column(called(entry), entry.stem, metric.module.samples(card), list(dict.fromkeys(missing)))


def _missing(asked: Asked, store: WeightStore) -> list[str]:
    """Weights that a network wants and the folder has not; a network that names none is a stand-in by itself."""
    if isinstance(asked.card, SegmenterCard):  # trained here
        return []
    names = [f"lpips-{asked.card.net}"] if isinstance(asked.card, LpipsCard) else asked.card.weights
    if not names:
        return [f"any file for {asked.key.split(':')[1]}"]
    files = {name: store.folder / store.card(name).file for name in names}
    return [name for name, file in files.items() if not is_there(converted_path(file)) and not is_there(file)]
