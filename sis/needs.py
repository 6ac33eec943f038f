# SPDX-License-Identifier: Apache-2.0
"""What the jobs of a run need of a cluster: the cards of run, experiment, dataset and method, laid over one another."""

from __future__ import annotations

from sis.config.cluster import USUAL, Cluster, Needs, Stage
from sis.errors import SisError


def layered(*cards: Cluster, device: str = "auto") -> Cluster:
    """One set of needs of several, the first one that says something counts; `device: cpu` asks for no GPU."""
    none = Needs(gpus=0) if device == "cpu" else Needs()
    found: Cluster = {}
    for stage, usual in USUAL.items():
        needs = none
        for card in cards:
            needs = needs.over(card.get(stage, Needs()))
        found[stage] = needs.over(usual)
    return found


def complete(stage: Stage, threads: int, who: str, cluster: Cluster) -> Needs:
    """The needs of one job with nothing left out. threads: of the experiment; who: whose job it is, for refusals.

    A process has at least as many CPUs as threads. Raises SisError where a stage that is one process asks for several.
    """
    needs = cluster.get(stage, Needs()).over(USUAL[stage])
    gpus, nodes = needs.gpus or 0, needs.nodes or 1
    tasks = needs.tasks or (max(1, gpus) if stage == "train" else 1)
    if stage != "train" and (nodes > 1 or tasks > 1):
        what = f"{who}: `cluster: {{{stage}: ...}}` asks for several nodes or tasks"
        raise SisError(what, fix="only `train` runs as several processes; leave `nodes:` and `tasks:` out")
    cpus = max(needs.cpus or 1, threads)
    return needs.model_copy(update={"gpus": gpus, "nodes": nodes, "tasks": tasks, "cpus": cpus})
