# SPDX-License-Identifier: Apache-2.0
"""Models that serve others: trained or imported by an experiment, or shipped as a card of an external base."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sis.config.base import Name, StrictModel
from sis.config.cards import Scalar
from sis.config.cluster import CLUSTER_TEXT, Cluster

Params = dict[str, Scalar | list[Scalar]]
#: Role of a method (`USES` in its file) to the model that fills it.
Uses = dict[Name, Name]

USES_TEXT = "the models it works with, by role: names of `models:`, of runs, or of files of config/bases"


class ModelEntry(StrictModel):
    """A model that runs use and that is not sampled itself."""

    method: Name = Field(description="the method whose network it is: a file of sis/methods")
    title: str = Field(default="", description="name in listings; empty: the method's own title")
    fit: Params = Field(default={}, description="training parameters that differ from the method's defaults")
    seed: int = Field(default=0, ge=0, description="training seed")
    uses: Uses = Field(default={}, description=USES_TEXT)
    checkpoint: str = Field(
        default="", description="file or folder of weights that are imported, not trained; may contain {dataset}"
    )
    checkpoint_weights: Literal["", "ema", "raw"] = Field(
        default="", description="what those weights are; recorded, since no file tells"
    )
    cluster: Cluster = Field(default={}, description=CLUSTER_TEXT)


class BaseCard(ModelEntry):
    """An external base model (config/bases/<name>.yaml); its weights lie in the weights folder."""

    name: Name = Field(description="name of the base, equal to the file's stem")
    checkpoint: str = Field(description="its weights, a file or folder below `weights:` of config/config.yaml")
    prediction_type: Literal["epsilon", "v_prediction", "none"] = Field(
        default="none", description="what the network predicts; none: it is no diffusion model"
    )
    licence: str = Field(description="licence of the weights")
    source: str = Field(description="where the weights come from")
