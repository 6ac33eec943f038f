# SPDX-License-Identifier: Apache-2.0
"""Images per second of sampling, as recorded by the run that sampled; comparable on one device only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.metric import Finished, Judge
from evaluators.partial import Partial
from sis.config.protocols import ProtocolCard

TITLE = "Sampling speed"
UNIT, DIRECTION, RANGE = "images/s", "higher", (0.0, float("inf"))
NEEDS, VERSION = "meta", 1
META_SETTINGS = ("device", "threads", "batch_size")


def name(card: ProtocolCard) -> str:
    return "images-per-second"


def settings(card: ProtocolCard) -> dict[str, Any]:
    return {}


def samples(card: ProtocolCard) -> int:
    return 1


def finish(rows: Partial, weights: NDArray, judge: Judge) -> Finished:
    seconds = judge.meta.get("sampling_seconds") or 0
    if judge.meta.get("role") == "control" or seconds <= 0:
        return Finished(np.full(len(weights), np.nan), note="nothing was sampled")
    note = f"{judge.meta['device']}, {judge.meta['threads']} threads, batch {judge.meta['batch_size']}"
    return Finished(np.full(len(weights), judge.meta["rows"] / seconds), note=note)
