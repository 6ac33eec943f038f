# SPDX-License-Identifier: Apache-2.0
"""What a method of kind `python` is: one class that turns label maps and keyed noise into images.

The harness supplies data, device, padded batches of fixed size, noise, checkpoints, shards, resume and timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sis.config.base import StrictModel
from sis.config.cards import DatasetCard
from sis.data.labels import LabelSpace
from sis.errors import SisError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sis.data.latents import LatentSet
    from sis.data.pairs import PairSet
    from sis.data.training_data import TrainingData
    from sis.diffusion.noise import Noise
    from sis.training.loop import TrainingRun


class NoParams(StrictModel):
    """A method without parameters."""


@dataclass(frozen=True)
class Use:
    """What may fill a role beside a method, as an autoencoder: models of these methods.

    weights: the stages that need the model's weights; in the others its network has shapes alone (device meta).
    """

    methods: tuple[str, ...]
    weights: Literal["fit", "sample", "both"] = "both"


@dataclass(frozen=True)
class Context:
    """Where a method runs.

    size: (height, width). pairs: the split's real photographs, only for methods whose NEEDS names "pairs" and for runs
    that PHOTOGRAPHS_WHEN names. prior: what the method's own `prior` returned, if it has one. uses: the ready method of
    each role that USES names, its network frozen. latents: the encoded training split, in `fit` and `prior` of methods
    that name a role in LATENTS.
    """

    dataset: DatasetCard
    labels: LabelSpace
    size: tuple[int, int]
    device: str
    pairs: PairSet | None = None
    prior: dict[str, Tensor] | None = None
    uses: Mapping[str, Method] = field(default_factory=dict)
    latents: LatentSet | None = None


@dataclass(frozen=True)
class MapBatch:
    """Label maps to turn into images.

    labels: int64 `(b, h, w)`, channels 0..width-1 of the label space (void, if there is one, is the last).
    instances: int64 `(b, h, w)`, 0 for stuff; all 0 where the dataset has no instance maps.
    references: uint8 `(b, 3, h, w)`, a photograph of the wanted style for each label map, from the train split; None
    unless the method's NEEDS names "references".
    """

    image_ids: tuple[str, ...]
    sample_indices: tuple[int, ...]
    labels: Tensor
    instances: Tensor
    references: Tensor | None = None


class Method:
    """Base of all Python methods. A subclass implements `sample`; `fit`, `prior` and `skip` where it needs them.

    A method without `sample` makes a part of others: its models are used by them and never judged. The workflow reads
    the class variables below from the source, so they are written as literals.
    """

    #: "control" for rows that calibrate the metrics; controls are shown, never ranked.
    ROLE: ClassVar[Literal["contestant", "control"]] = "contestant"
    #: Raised whenever the same parameters would give other images.
    VERSION: ClassVar[int] = 1
    #: What it reads besides label maps: nothing, ("pairs",) for controls that show real photographs, or ("references",)
    #: for a photograph of the wanted style.
    NEEDS: ClassVar[tuple[str, ...]] = ()
    #: Sampling parameters that turn a run into a control that shows real photographs: {parameter: values}.
    PHOTOGRAPHS_WHEN: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: The models that it works with, by role; a run names them under `uses:`.
    USES: ClassVar[dict[str, Use]] = {}
    #: The role whose first stage encodes the training split beforehand (`Context.latents`); empty: none.
    LATENTS: ClassVar[str] = ""
    #: Whether mirrored photographs are encoded too, where a run's `fit:` does not say `flip`: that parameter's default.
    MIRRORED: ClassVar[bool] = False
    #: Whether the prior follows from the latents and its own parameters alone, so that all trainings share it.
    PRIOR_OF_LATENTS: ClassVar[bool] = False
    #: How a reference photograph enters.
    REFERENCE: ClassVar[Literal["none", "global", "regional", "latent_start"]] = "none"
    #: True when every sample of a label map is the same image.
    DETERMINISTIC: ClassVar[bool] = False

    #: What its jobs need of a cluster, by stage, as {"train": {"gpus": 1, "memory_gb": 32, "hours": 24}}: the keys of
    #: `cluster:` in docs/configuration.md.
    CLUSTER: ClassVar[dict[str, dict[str, float]]] = {}

    #: Parameters that decide the trained model.
    FitParams: ClassVar[type[StrictModel]] = NoParams
    #: Parameters of sampling alone. Pictures of the training are drawn with fewer `steps`, where there are such.
    SampleParams: ClassVar[type[StrictModel]] = NoParams
    #: Parameters of `prior`.
    PriorParams: ClassVar[type[StrictModel]] = NoParams

    #: Small parameters with which `sis check` runs the method on tiny data.
    EXAMPLE_FIT: ClassVar[dict[str, Any]] = {}
    EXAMPLE_SAMPLE: ClassVar[dict[str, Any]] = {}
    EXAMPLE_PRIOR: ClassVar[dict[str, Any]] = {}
    #: And small models for its roles: {role: {"method": name, "fit": {...}, "uses": {role: the same}}}.
    EXAMPLE_USES: ClassVar[dict[str, Any]] = {}

    #: The trained network, a torch.nn.Module or None; the harness saves its averaged weights and loads them again.
    network: Any = None

    def __init__(self, context: Context, fit: Any, sample: Any, prior: Any = None) -> None:
        """Keep the context and the validated parameters; `build` makes the network."""
        self.context, self.fit_params, self.sample_params = context, fit, sample
        self.prior_params: Any = self.PriorParams() if prior is None else prior
        self.build()

    def build(self) -> None:
        """Make `self.network` (randomly initialised under the harness' seed), if the method trains one."""

    def fit(self, data: TrainingData, run: TrainingRun) -> None:
        """Train `self.network`, normally by `run.optimise(...)`."""
        raise NotImplementedError

    def prior(self, data: TrainingData) -> dict[str, Tensor]:
        """Statistics of the training set that sampling needs, as named tensors."""
        raise NotImplementedError

    def prior_shard(self, data: TrainingData, index: int, count: int) -> dict[str, Tensor]:
        """The statistics behind the prior over part `index` of `count` of the training set, as named tensors."""
        raise SisError("this method's prior is computed in one piece", fix="leave out --shard")

    def merged_prior(self, shards: Sequence[Path]) -> dict[str, Tensor]:
        """What `prior` returns, from the files of all parts in any order."""
        raise SisError("this method's prior is computed in one piece", fix="leave out --merge")

    def sample(self, maps: MapBatch, noise: Noise) -> Tensor:
        """Turn label maps into uint8 images `(b, 3, h, w)`, with no randomness but `noise`."""
        raise NotImplementedError

    @classmethod
    def skip(cls, dataset: DatasetCard) -> str:
        """Why this method cannot run on a dataset, as a sentence; empty when it can."""
        return ""
