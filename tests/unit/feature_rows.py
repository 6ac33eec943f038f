# SPDX-License-Identifier: Apache-2.0
"""Rows of features as distribution metrics get them, and the judge that they ask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.metric import Judge
from evaluators.partial import Partial, partial
from sis.config.protocols import ProtocolCard
from sis.data.labels import LabelSpace

SPACE = LabelSpace.model_validate(
    {"name": "one", "void": 255, "classes": [{"id": 0, "name": "a", "colour": [0, 0, 0]}]}
)


def card(extractor: str = "inception", replicates: int = 20, **options: Any) -> ProtocolCard:
    """A protocol with this extractor and these options of it."""
    return ProtocolCard.model_validate(
        {
            "name": "test",
            "title": "Test",
            "dataset": "toy",
            "split": "val",
            "reference": {"split": "val"},
            "features": {"name": extractor, "options": options},
            "metrics": ["fid"],
            "bootstrap": {"replicates": replicates, "seed": 1},
            "version": 1,
        }
    )


def rows(features: NDArray) -> Partial:
    """One image a label map."""
    return partial(
        [f"{i:05d}" for i in range(len(features))], [0] * len(features), features=np.asarray(features, np.float32)
    )


def judge(real: NDArray, replicates: int = 20) -> Judge:
    return Judge(card(replicates=replicates), SPACE, reference=rows(real))


def ones(count: int) -> NDArray[np.float64]:
    """The weights of the value."""
    return np.ones((1, count))


def gaussian(seed: int, count: int, dims: int, spectrum: float = 1.0, shift: float = 0.0) -> NDArray[np.float32]:
    """Rows of a Gaussian whose k-th variance is k^-spectrum."""
    rng = np.random.default_rng(seed)
    deviations = np.arange(1, dims + 1) ** (-spectrum / 2)
    return (rng.normal(size=(count, dims)) * deviations + shift).astype(np.float32)
