# SPDX-License-Identifier: Apache-2.0
"""What the jobs of an experiment ask a site for, and whether its partitions, nodes and limits have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from sis.config.cluster import Needs, SlurmSite, Stage
from sis.errors import first_of
from sis.launch.doctor_finding import Finding, bad, note, ok
from sis.launch.doctor_site import Facts, Node, hours_of
from sis.plan import Plan, RunSpec


@dataclass(frozen=True)
class Demand:
    """What jobs of a stage ask for. who: a run or dataset that does."""

    stage: Stage
    needs: Needs
    who: str

    @property
    def gpus(self) -> int:
        return self.needs.gpus or 0

    @property
    def nodes(self) -> int:
        return self.needs.nodes or 1

    @property
    def cpus(self) -> int:
        """CPUs a node."""
        return (self.needs.cpus or 1) * (self.needs.tasks or 1)

    @property
    def memory_mb(self) -> int:
        return int((self.needs.memory_gb or 0) * 1024)

    @property
    def text(self) -> str:
        """The demand in words."""
        nodes = f"{self.nodes} nodes with " if self.nodes > 1 else ""
        gpus = f"{self.gpus} GPU{'s' * (self.gpus != 1)}, " if self.gpus else ""
        hours, memory = self.needs.hours or 0, self.needs.memory_gb or 0
        return f"{self.stage} ({self.who}): {nodes}{gpus}{self.cpus} CPUs, {memory:g} GiB, {hours:g} h"

    def partition(self, site: SlurmSite, facts: Facts) -> str:
        """Where its jobs go."""
        named = site.partition if self.gpus else site.cpu_partition or site.partition
        return named or facts.default_partition

    def fix(self, key: str, value: object) -> str:
        """How to ask for something else."""
        return f"write `cluster: {{{self.stage}: {{{key}: {value}}}}}` in the experiment or the card that asks for it"


def demands(plan: Plan) -> list[Demand]:
    """The different demands of all jobs of an experiment, in the order of the stages."""
    found: dict[tuple[Stage, str], Demand] = {}
    for spec, judged in [*((part, False) for part in plan.parts), *((run, True) for run in plan.runs)]:
        for stage in stages(spec, judged):
            needs = spec.needs(stage)
            who = spec.dataset.name if stage == "prepare" else spec.name
            found.setdefault((stage, needs.model_dump_json()), Demand(stage, needs, who))
    return sorted(found.values(), key=lambda demand: get_args(Stage).index(demand.stage))


def stages(spec: RunSpec, judged: bool) -> list[Stage]:
    """The stages that a run goes through; a model that is not `judged` itself is only made."""
    trains = spec.method.trains and not spec.checkpoint and spec.ensemble is None
    wanted: dict[Stage, bool] = {
        "prepare": True,
        "train": trains,
        "encode": bool(spec.latents_id) and trains,
        "prior": bool(spec.prior_id),
        "sample": judged and not spec.given,
        "evaluate": judged,
    }
    return [stage for stage, needed in wanted.items() if needed]


def check_demand(demand: Demand, site: SlurmSite, facts: Facts, excluded: frozenset[str]) -> Iterator[Finding]:
    """Whether some nodes can take such a job, within the partition's limits.

    excluded: nodes that the site's settings leave out.
    """
    partition = demand.partition(site, facts)
    if partition not in facts.partitions:
        return  # said once, by the check of partitions
    if limit := _too_long(demand, site, facts, partition):
        yield limit
    here = [n for n in facts.nodes if partition in n.partitions and n.name not in excluded]
    if lack := _lack(demand, site, here, partition):
        yield lack
        return
    fitting = [n for n in here if fits(n, demand, site)]
    usable = [n.name for n in fitting if n.usable]
    if len(usable) < demand.nodes:
        down = f"of {len(fitting)} nodes that fit, {len(usable)} can take jobs now ({_states(fitting)})"
        yield note(f"{demand.text}: {down}", fix="it waits until they are back (sinfo -R says why they are away)")
    elif not limit:
        yield ok(f"{demand.text}: {len(usable)} nodes of partition {partition} fit")


def fits(node: Node, demand: Demand, site: SlurmSite) -> bool:
    """Whether a node that is empty could take one node's part of such a job."""
    enough = node.cpus >= demand.cpus and node.memory_mb >= demand.memory_mb
    return enough and _has_features(node, site) and gpus_of(node, site) >= demand.gpus


def gpus_of(node: Node, site: SlurmSite) -> int:
    """How many GPUs of the site's type a node has."""
    return node.gpus.get(site.gpu_type, 0) if site.gpu_type else sum(node.gpus.values())


def _has_features(node: Node, site: SlurmSite) -> bool:
    # Anything but a plain list of features, as `a100|h100`, is left to Slurm to judge.
    plain = site.constraint.replace("&", ",").split(",") if site.constraint else []
    return any(sign in site.constraint for sign in "|*[]()!") or set(plain) <= set(node.features)


def _too_long(demand: Demand, site: SlurmSite, facts: Facts, partition: str) -> Finding | None:
    limit = hours_of(facts.partitions[partition].get("MaxTime", ""))
    whose = f"partition {partition}"
    if site.qos in facts.qos and hours_of(facts.qos[site.qos]["MaxWall"]) < limit:
        limit, whose = hours_of(facts.qos[site.qos]["MaxWall"]), f"qos {site.qos}"
    hours = demand.needs.hours or 0
    if hours <= limit:
        return None
    rest = "; it goes on in a further job" if demand.stage in ("train", "sample") else ""
    return bad(f"{demand.text}: {whose} allows {limit:g} h a job", demand.fix("hours", f"{limit:g}") + rest)


def _lack(demand: Demand, site: SlurmSite, here: list[Node], partition: str) -> Finding | None:
    """The first thing that too few nodes of the partition have, busy and broken ones included."""
    kind = f" of type {site.gpu_type}" if site.gpu_type else ""
    most_gpus = max((gpus_of(n, site) for n in here), default=0)
    most_memory = max((n.memory_mb for n in here), default=0) // 1024
    most_cpus = max((n.cpus for n in here), default=0)
    if not here:
        return bad(f"partition {partition} has no nodes but those left out", "change `slurm: exclude:`")
    if not any(_has_features(n, site) for n in here):
        known = first_of(sorted({f for n in here for f in n.features})) or "none"
        return bad(
            f"no node of partition {partition} has {site.constraint}; known: {known}", "change `slurm: constraint:`"
        )
    if most_gpus < demand.gpus:
        has = f"the nodes of partition {partition} have at most {most_gpus} GPUs{kind} (GRES: {_gres(here)})"
        fix = "correct `slurm: gpu_type:` or `slurm: partition:` in config/config.yaml" if not most_gpus else ""
        return bad(f"{demand.text}: {has}", fix or demand.fix("gpus", most_gpus))
    if most_memory * 1024 < demand.memory_mb:
        has = f"the nodes of partition {partition} have at most {most_memory} GiB"
        return bad(f"{demand.text}: {has}", demand.fix("memory_gb", most_memory))
    if most_cpus < demand.cpus:
        has = f"the nodes of partition {partition} have at most {most_cpus} CPUs"
        return bad(f"{demand.text}: {has}", demand.fix("cpus", max(1, most_cpus // (demand.needs.tasks or 1))))
    fitting = sum(fits(n, demand, site) for n in here)
    if fitting < demand.nodes:
        has = f"{fitting} nodes of partition {partition} have all of it at once"
        return bad(f"{demand.text}: {has}", demand.fix("nodes", max(1, fitting)))
    return None


def _gres(nodes: list[Node]) -> str:
    kinds = {f"gpu:{kind}:{n}" if kind else f"gpu:{n}" for node in nodes for kind, n in node.gpus.items()}
    return ", ".join(sorted(kinds)) or "none"


def _states(nodes: list[Node]) -> str:
    return first_of(f"{n.name} {n.state}" for n in nodes if not n.usable)
