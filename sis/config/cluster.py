# SPDX-License-Identifier: Apache-2.0
"""What the stages need of a cluster, and how this site's Slurm is asked for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sis.config.base import StrictModel

Stage = Literal["prepare", "train", "encode", "prior", "sample", "evaluate"]


class Needs(StrictModel):
    """What one job of a stage asks for; what is left out comes from the next card (docs/slurm.md)."""

    gpus: int | None = Field(default=None, ge=0, description="GPUs a node")
    nodes: int | None = Field(default=None, ge=1, description="nodes of one training")
    tasks: int | None = Field(default=None, ge=1, description="processes a node of one training; empty: one a GPU")
    cpus: int | None = Field(default=None, ge=1, description="CPUs a process, at least the experiment's threads")
    memory_gb: float | None = Field(default=None, gt=0, description="memory a node, GiB")
    hours: float | None = Field(default=None, gt=0, description="time limit of one job, hours")

    def over(self, other: Needs) -> Needs:
        """These needs, filled in from `other` where they say nothing."""
        return Needs(**{**other.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


Cluster = dict[Stage, Needs]

CLUSTER_TEXT = "what its jobs need of a cluster, by stage"

#: What a stage asks for where no card says more.
USUAL: dict[Stage, Needs] = {
    "prepare": Needs(gpus=0, nodes=1, cpus=16, memory_gb=16, hours=12),
    "train": Needs(gpus=1, nodes=1, memory_gb=32, hours=24),
    "encode": Needs(gpus=1, nodes=1, memory_gb=16, hours=8),
    "prior": Needs(gpus=1, nodes=1, memory_gb=32, hours=4),
    "sample": Needs(gpus=1, nodes=1, memory_gb=16, hours=8),
    "evaluate": Needs(gpus=1, nodes=1, memory_gb=32, hours=4),
}


class SlurmSite(StrictModel):
    """How this site's Slurm is asked for jobs."""

    partition: str = Field(default="", description="partition of jobs with GPUs; empty: Slurm's default")
    cpu_partition: str = Field(default="", description="partition of jobs without; empty: the same")
    account: str = Field(default="", description="account that is charged; empty: the user's own")
    qos: str = Field(default="", description="quality of service; empty: none is asked for")
    gpu_type: str = Field(default="", description="type of GPU, as in --gres=gpu:TYPE:1; empty: any")
    constraint: str = Field(default="", description="features that nodes must have")
    exclude: str = Field(default="", description="nodes that are not used")
    signal_seconds: int = Field(
        default=120, ge=5, description="a job is told so long before its time limit; it saves and queues again"
    )
    array_jobs: int = Field(default=32, ge=1, description="shards of one image set that are sampled at a time")
    array_size: int = Field(default=500, ge=1, description="jobs of an array; more shards share jobs")
    poll_seconds: float = Field(default=10.0, gt=0, description="between two looks at the queue")
    patience_seconds: float = Field(
        default=60.0, gt=0, description="how long files of another node may take to be seen here"
    )
    resubmits: int = Field(
        default=3, ge=0, description="new submissions after a dead node or a time limit, without progress between"
    )
    setup: list[str] = Field(default=[], description="shell commands at the start of every job, as `module load cuda`")
    extra: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], str] = Field(
        default={}, description="further options of sbatch, without the dashes"
    )
