# SPDX-License-Identifier: Apache-2.0
"""How a network is optimised: the options that every trained method shares."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sis.config.base import StrictModel


class Recipe(StrictModel):
    """Optimisation of one stage of training."""

    steps: int = Field(default=1000, ge=1, description="optimiser steps")
    batch_size: int = Field(default=16, ge=1, description="images a step")
    learning_rate: float = Field(default=1e-4, gt=0, description="AdamW's learning rate after warm-up")
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine"] = Field(default="constant", description="learning rate after warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    ema: float = Field(default=0.9999, ge=0, lt=1, description="decay of the averaged weights")
    ema_warmup: bool = Field(default=False, description="let the averaging window grow with the step: (1 + n)/(10 + n)")
    flip: bool = Field(default=True, description="mirror half of the images")
    checkpoint_every: int = Field(default=250, ge=1, description="steps between resumable states")

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def ema_decay(self, step: int) -> float:
        """Weight of the old average at a step (0-based)."""
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warmup else self.ema
