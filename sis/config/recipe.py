# SPDX-License-Identifier: Apache-2.0
"""How a network is optimised: the options that every trained method shares (docs/training.md)."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from sis.config.base import StrictModel


class Recipe(StrictModel):
    """Optimisation in one stage or two; steps count through both."""

    steps: int = Field(default=1000, ge=1, description="optimiser steps (of the first stage)")
    batch_size: int = Field(default=16, ge=1, description="images a step, over all processes together")
    micro_batch: int = Field(
        default=0, ge=0, description="images that go through the network together; 0: all of a step"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="AdamW's learning rate after warm-up")
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up, in each stage")
    decay: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate after warm-up; cosine: to zero at the end of each stage"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    ema: float = Field(default=0.9999, ge=0, lt=1, description="decay of the averaged weights")
    ema_warmup: bool = Field(
        default=False, description="let the averaging window grow with the step of a stage: (1 + n)/(10 + n)"
    )
    flip: bool = Field(default=True, description="mirror half of the images")
    finetune_steps: int = Field(default=0, ge=0, description="steps of a second stage; 0: there is none")
    finetune_rate: float = Field(default=2e-5, gt=0, description="learning rate of the second stage")
    finetune_start: Literal["ema", "raw"] = Field(
        default="ema", description="first-stage weights that the second stage and its average start from"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="type of convolutions and matrix products; norms and losses are float32"
    )
    checkpointing: bool = Field(
        default=False, description="keep block inputs only and compute the rest again for gradients: less memory"
    )
    checkpoint_every: int = Field(default=250, ge=1, description="steps between resumable states")
    keep_raw: bool = Field(default=False, description="save the last weights too, as model-raw.safetensors")
    keep: list[int] = Field(
        default=[], description="steps whose averaged weights stay as models of their own (a run's `at_step`)"
    )
    preview_every: int = Field(default=0, ge=0, description="steps between pictures of the training; 0: none")
    preview_images: int = Field(default=4, ge=1, description="training label maps that are drawn for a picture")
    preview_steps: int = Field(default=25, ge=1, description="most sampling steps of a picture")

    @model_validator(mode="after")
    def _keeps_steps_that_there_are(self) -> Self:
        if any(not 1 <= step <= self.total for step in self.keep) or len(set(self.keep)) < len(self.keep):
            raise ValueError(f"keep: steps from 1 to {self.total}, each once")
        return self

    @property
    def stages(self) -> int:
        """1, or 2 with a second stage."""
        return 2 if self.finetune_steps else 1

    @property
    def total(self) -> int:
        """Steps of all stages."""
        return self.steps + self.finetune_steps

    def stage(self, step: int) -> int:
        """The stage, 1 or 2, that a step (0-based) belongs to."""
        return 1 if step < self.steps else 2

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        first = self.stage(step) == 1
        peak, steps = (self.learning_rate, self.steps) if first else (self.finetune_rate, self.finetune_steps)
        step = self._within(step)
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "constant":
            return peak * warm
        return peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))

    def ema_decay(self, step: int) -> float:
        """Weight of the old average at a step (0-based)."""
        step = self._within(step)
        return min(self.ema, (1 + step) / (10 + step)) if self.ema_warmup else self.ema

    def _within(self, step: int) -> int:
        """A step, counted from the beginning of its stage."""
        return step if step < self.steps else step - self.steps
