# SPDX-License-Identifier: Apache-2.0
"""Parameters of SCP-Diff's priors: those that decide the statistics, and those that assemble a prior from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sis.config.base import StrictModel

#: Where chains start: N(0, I), or a Gaussian of the training latents (Eqs. 5, 7, 8). `spatial_class` is in the
#: released code alone. (`x0`, the latent of a photograph itself, is no statistic.)
Kind = Literal["normal", "spatial", "categorical", "joint", "spatial_class"]


class StatisticsParams(StrictModel):
    """What the statistics are taken of: the `prior:` section of a run."""

    n_images: int = Field(default=10_000, ge=1, description="training images that the statistics see")
    draw: Literal["all", "replacement"] = Field(
        default="all",
        description="all: every image once, or so many different ones; replacement: each drawn from all; the released "
        "statistics have a draw of their own",
    )
    latents: Literal["mode", "sample"] = Field(
        default="mode", description="of the encoder's posterior: its mean, or a sample of it"
    )
    fidelity: Literal["paper", "release"] = Field(
        default="paper",
        description="paper: all tokens of the drawn images (Eqs. 5, 7, 8); release: one random token for each image "
        "and class, and the joint prior from a fixed part of the split",
    )
    seed: int = Field(default=42, ge=0, description="of the draw of images and tokens")


class Policy(StrictModel):
    """How a prior is assembled for a label map; every field has the paper's value unless it is given."""

    fallback: Literal["class", "spatial"] = Field(
        default="class", description="prior of a token whose (class, position) was seen too rarely"
    )
    min_count: int = Field(default=1, ge=1, description="fewest tokens that a joint or class statistic must rest on")
    ddof: Literal[0, 1] = Field(default=0, description="variances divide by count - ddof")
    shrinkage: float = Field(
        default=0.0, ge=0, description="k of (n joint + k class) / (n + k), on mean and variance; 0: none (ours)"
    )
    temperature: float = Field(default=1.0, ge=0, description="factor of the standard deviation (ours)")
    unknown: int | None = Field(
        default=None, ge=0, description="class that stands for classes never seen; empty: the spatial prior does"
    )
    spatial_weight: float = Field(default=1.0, ge=0, description="weight a of `spatial_class`")
    class_weight: float = Field(default=1.0, ge=0, description="weight b of `spatial_class`")
    fidelity: Literal["paper", "release"] = Field(
        default="paper", description="release: class deviations divide by count - 1, all others by count"
    )

    @model_validator(mode="after")
    def _release_is_one_thing(self) -> Policy:
        if self.fidelity == "release" and (self.min_count, self.ddof, self.shrinkage) != (1, 0, 0.0):
            raise ValueError("fidelity release fixes min_count 1, its own ddof and no shrinkage")
        if self.spatial_weight + self.class_weight <= 0:
            raise ValueError("spatial_weight and class_weight cannot both be 0")
        return self

    @classmethod
    def released(cls, fallback: Literal["class", "spatial"] = "spatial", unknown: int | None = 255) -> Policy:
        """The policy of the released code; its published script falls back to the spatial prior.

        unknown: the id whose statistics stand for classes never seen; 255 in label files, elsewhere void's channel.
        """
        return cls(fallback=fallback, unknown=unknown, fidelity="release")

    @property
    def class_ddof(self) -> int:
        """ddof of the class statistics."""
        return 1 if self.fidelity == "release" else self.ddof
