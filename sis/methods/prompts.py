# SPDX-License-Identifier: Apache-2.0
"""Prompts of Stable Diffusion: the embeddings of a dataset's constant texts, imported (`sis embed-prompts`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from sis.config.base import StrictModel
from sis.data.training_data import TrainingData
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.contract import Method
from sis.nets.latent.text import PromptEmbeddings

if TYPE_CHECKING:
    from sis.training.loop import TrainingRun


class FitParams(StrictModel):
    """Size of the embeddings, or a stand-in for them."""

    tokens: int = Field(default=77, ge=1, description="tokens of a prompt, padding included")
    width: int = Field(default=1024, ge=1, description="width of the embeddings: 1024 for SD 2, 768 for SD 1.5")
    stand_in: bool = Field(
        default=False, description="random embeddings of no text, for base models that are trained here from nothing"
    )


class Prompts(Method):
    CLUSTER = {"train": {"gpus": 0, "memory_gb": 4, "hours": 1}}
    FitParams = FitParams
    EXAMPLE_FIT = {"stand_in": True, "tokens": 4, "width": 32}

    def build(self) -> None:
        self.network = PromptEmbeddings(self.fit_params.tokens, self.fit_params.width)

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        """Draw a stand-in; the prompt of sampling is that of training, as in SCP-Diff's paper."""
        if not self.fit_params.stand_in:
            fix = "name the file of `sis embed-prompts` as `checkpoint:`, or set `stand_in: true`"
            raise SisError("embeddings of prompts are imported, not trained", where=run.title, fix=fix)
        noise, shape = Noise(run.seed, (("prompts", 0),), run.device), (self.network.tokens, self.network.width)
        train = noise.normal("train", 0, shape)[0]
        self.network.fill({"train": train, "positive": train, "negative": noise.normal("negative", 0, shape)[0]})
        run.average = self.network.state_dict()
