# SPDX-License-Identifier: Apache-2.0
"""What a metric is: the words that its file and the harness share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard
from sis.data.labels import LabelSpace

if TYPE_CHECKING:
    from evaluators.lpips_backbone import LpipsBackbone

#: What a metric's `map` looks at; "meta" = nothing but the facts of the image set, "parts" = other metrics' values.
Needs = Literal[
    "images",
    "images:reference",
    "labels:segmenter",
    "features:segmenter",
    "features:extractor",
    "groups",
    "meta",
    "parts",
]

#: `progress(done, total, extra)`: extra holds numbers to show.
Progress = Callable[[int, int, dict[str, float]], None]


def silent(done: int, total: int, extra: dict[str, float]) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Batch:
    """Images with all that the networks said about them; for NEEDS = "groups": the samples of one label map.

    images and references (photographs whose style was asked for) uint8 `(b, h, w, 3)`; labels and predicted uint8
    `(b, H, W)`, where a segmenter compares at the label maps' own size larger than the images; features float32
    `(b, d)`. What the metric did not ask for in NEEDS is empty.
    """

    image_ids: list[str]
    sample_indices: list[int]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    predicted: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    references: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


@dataclass(frozen=True)
class Judge:
    """What a metric may ask beside the images: card, label table, reference rows, the set's own facts."""

    card: ProtocolCard
    labels: LabelSpace
    backbone: LpipsBackbone | None = None
    reference: Partial | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """Values under weights: each array is `(r,)`, one value for each row of the weights; NaN = undefined.

    `by_class` is empty or has one entry a class; `note` is a caveat for the table.
    """

    value: NDArray[np.float64]
    by_class: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    note: str = ""


class Metric(Protocol):
    """The shape of a file in evaluators/metrics.

    Optional beside these: SOURCE (the metric whose partial is used, then no `map`), CLASS_METRIC (name of the per-
    class rows), RECENTRE (see fd.py), USES_REFERENCE, `merge` (default: evaluators.partial.merge), WEIGHTS =
    "resampling" (rows of weights are resampled in a way of its own, or have no value; else whole weights are
    repeated label maps), `per_image(rows, judge)` (one value for each row, float64 `(n,)`, NaN = undefined,
    comparable between sets), `map_settings(card)` (the part of `settings` that its rows depend on; default: all),
    `features(card)` (the extractor it looks at; default: the protocol's). A metric with NEEDS = "parts" has PARTS
    (stems of metrics) and `combine(parts, card)` in place of `map` and `finish`.
    """

    TITLE: str
    UNIT: str
    DIRECTION: Literal["higher", "lower", "none"]
    RANGE: tuple[float, float]
    NEEDS: Needs
    VERSION: int

    def name(self, card: ProtocolCard) -> str:
        """The metric's name in score tables."""
        ...

    def settings(self, card: ProtocolCard) -> dict[str, Any]:
        """The part of the card that its numbers depend on; JSON."""
        ...

    def samples(self, card: ProtocolCard) -> int:
        """How many samples of a label map it looks at."""
        ...

    def map(self, batch: Batch, judge: Judge) -> Partial:
        """Reduce images to rows."""
        ...

    def finish(self, rows: Partial, weights: NDArray, judge: Judge) -> Finished:
        """Turn rows into values; weights float64 `(r, m)` are multiplicities of the sorted label maps."""
        ...
