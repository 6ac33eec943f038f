# SPDX-License-Identifier: Apache-2.0
"""One run of one method on one dataset, or one model: everything that decides its artefacts, and their ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sis.config.cards import DatasetCard
from sis.config.cluster import Cluster, Needs, Stage
from sis.config.protocols import ProtocolCard
from sis.data.manifest import stable_hash
from sis.methods.discovery import MethodInfo
from sis.needs import complete

#: How the name of latents ends that hold the mirrored pictures too.
MIRRORED = "-mirrored"


@dataclass(frozen=True)
class Ensemble:
    """The plain mean of the models of the best runs of some.

    members: the runs, each judged under the experiment's protocol. best: how many of them. by: the metric that decides.
    """

    members: tuple[RunSpec, ...]
    best: int
    by: str

    def identity(self) -> list[Any]:
        """Everything that decides which weights are averaged."""
        protocol = stable_hash(self.members[0].protocol.model_dump())
        return [[member.run_id for member in self.members], self.best, self.by, protocol]


def kept_path(model: Path, step: int) -> Path:
    """Where a training keeps the averaged weights of a step on the way."""
    return model.with_name(f"{model.stem}-step{step:07d}{model.suffix}")


@dataclass(frozen=True)
class RunSpec:
    """One run of one method on one dataset: a future image set, or one that is `given` by its run id.

    A model that only serves others is the same without images. uses: the model that fills each role of the method.
    """

    dataset: DatasetCard
    protocol: ProtocolCard
    name: str
    method: MethodInfo
    title: str
    fit: dict[str, Any]
    sample: dict[str, Any]
    seed: int
    sample_seed: int
    samples_per_map: int
    batch_size: int
    shard_size: int
    threads: int
    checkpoint: str = ""
    checkpoint_weights: str = ""
    given: str = ""
    prior: dict[str, Any] = field(default_factory=dict)
    uses: dict[str, RunSpec] = field(default_factory=dict)
    at_step: int = 0
    ensemble: Ensemble | None = None
    # Where its jobs run decides nothing about what they make.
    cluster: Cluster = field(default_factory=dict, compare=False)
    model_id: str = field(init=False)
    prior_id: str = field(init=False)
    run_id: str = field(init=False)

    def __post_init__(self) -> None:
        # What a model is made of: everything that decides its weights on one machine.
        base = [self.method.name, self.method.version, self.dataset.identity(), self.threads]
        imported = [self.checkpoint, self.checkpoint_weights] if self.checkpoint else []
        used = [{role: spec.model_id for role, spec in self.uses.items()}] if self.uses else []
        mean = [self.ensemble.identity()] if self.ensemble else []
        model = stable_hash([*base, self.fit, self.seed, *imported, *used, *mean])
        prior = stable_hash([*base, self.prior, self.latents_id]) if self.method.prior_of_latents else model
        object.__setattr__(self, "model_id", f"{self.method.name}-{model}" if self.method.trains else "")
        object.__setattr__(self, "prior_id", f"{self.method.name}-{prior}" if self.method.has_prior else "")
        how = [self.sample, self.sample_seed, self.samples_per_map, self.batch_size, self.protocol.split]
        how += [prior] if prior != model else []
        how += [{"at_step": self.at_step}] if self.at_step else []
        card = self.method.card.identity() if self.method.card else {}
        made = f"{self.name}-{stable_hash([*base, model, how, card])}"
        object.__setattr__(self, "run_id", self.given or made)

    @property
    def latents_id(self) -> str:
        """Name of the encoded training split that the method reads; empty: none."""
        if not self.method.latents:
            return ""
        mirrored = self.fit.get("flip", self.method.mirrored)
        return self.uses[self.method.latents].model_id + (MIRRORED if mirrored else "")

    def needs(self, stage: Stage) -> Needs:
        """What a job of a stage of this run asks a cluster for, nothing left out. Raises SisError for impossible needs.

        gpus, tasks (processes) and memory_gb (GiB): a node; cpus: a process; hours: the time limit of one job.
        """
        return complete(stage, self.threads, self.name, self.cluster)

    @property
    def role(self) -> str:
        """control: shown, never ranked; contestant."""
        return "control" if self.shows_photographs else self.method.role

    @property
    def shows_photographs(self) -> bool:
        """Whether its images are made of the photographs that it is judged against."""
        return self.method.shows_photographs(self.sample)

    def used(self, stage: str) -> dict[str, RunSpec]:
        """The models whose weights a stage, fit or sample, needs, by role."""
        return {r: s for r, s in self.uses.items() if self.method.uses[r].weights in (stage, "both")}

    @property
    def folder(self) -> str:
        """Kind images: where the pictures of this dataset lie."""
        return self.method.card.path.format(dataset=self.dataset.name) if self.method.card else ""
