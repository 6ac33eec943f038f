# SPDX-License-Identifier: Apache-2.0
"""Examines a site's Slurm before anything is submitted that matters (docs/slurm.md)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sis.config.cluster import SlurmSite
from sis.errors import SisError
from sis.launch.doctor_checks import check_site, used_partitions
from sis.launch.doctor_demand import Demand, check_demand, demands
from sis.launch.doctor_finding import Finding, bad, note, ok
from sis.launch.doctor_jobs import TinyJob, try_job
from sis.launch.doctor_site import Ask, Facts, ask, installed, read_facts
from sis.launch.queue import Unreachable
from sis.plan import Plan

#: What `pip install sis-bench[slurm]` brings.
_PACKAGES = ("submitit", "snakemake-executor-plugin-slurm")


def examine(
    plan: Plan, jobs: bool = True, wait: float = 120.0, say: Callable[[str], None] = print, ask: Ask = ask
) -> Iterator[Finding]:
    """One finding after the other, as they come.

    Args:
        plan: the experiment whose jobs the site must take, with the site's settings.
        jobs: whether tiny jobs are submitted.
        wait: seconds until one that does not start is given up.
        say: takes progress lines.

    Raises SisError where Slurm is not installed.
    """
    site = plan.settings.slurm
    try:
        facts = read_facts(ask)
    except Unreachable as error:
        yield bad(error.what, error.fix)
        return
    yield from _software(facts)
    yield from _configuration(ask)
    yield from check_site(facts, site)
    asked = demands(plan)
    excluded = (
        frozenset(ask("scontrol", "show", "hostnames", site.exclude).out.split()) if site.exclude else frozenset()
    )
    for demand in asked:
        yield from check_demand(demand, site, facts, excluded)
    yield from _folder(Path(plan.root))
    if jobs:
        for tiny in tiny_jobs(asked, facts, site, excluded):
            yield from try_job(tiny, site, Path(plan.root), wait, say, ask)


def tiny_jobs(asked: list[Demand], facts: Facts, site: SlurmSite, excluded: frozenset[str]) -> list[TinyJob]:
    """A job for every partition that takes jobs, on two of its nodes where there are two."""
    found = []
    for partition in used_partitions(facts, site):
        here = [n for n in facts.nodes if partition in n.partitions and n.usable and n.name not in excluded]
        gpu = any(d.gpus for d in asked if d.partition(site, facts) == partition)
        if gpu:
            here = [n for n in here if n.gpus and (not site.gpu_type or site.gpu_type in n.gpus)]
        if here:
            found.append(TinyJob(partition, min(2, len(here)), gpu))
    return found


def _software(facts: Facts) -> Iterator[Finding]:
    missing = installed()
    if missing:
        yield bad(f"Slurm's commands {', '.join(missing)} are missing here", "run this on a login node of the cluster")
    yield ok(f"Slurm {facts.version}, cluster {facts.config.get('ClusterName', '?')}: the controller answers")
    for name in _PACKAGES:
        try:
            yield ok(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield bad(f"{name} is not installed", "pip install 'sis-bench[slurm]'")


def _configuration(ask: Ask) -> Iterator[Finding]:
    """Snakemake's own jobs forget the variables SLURM_*, and their srun looks for Slurm in its usual place."""
    if "SLURM_CONF" in os.environ and ask("env", "-u", "SLURM_CONF", "scontrol", "ping").code:
        text = "Slurm's commands find the cluster by SLURM_CONF alone, which jobs of Snakemake's slurm executor drop"
        yield note(text, "ask for /etc/slurm/slurm.conf on the nodes; training and sampling work without it")


def _folder(root: Path) -> Iterator[Finding]:
    """The folder of artefacts, which is made if need be."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free / 1024**3
    except OSError as error:
        raise SisError(
            f"no artefacts can be written: {error.strerror}", where=root, fix="change `artefacts:`"
        ) from error
    text = f"{root.resolve()} has {free:,.0f} GiB free"
    yield ok(text) if free >= 1 else note(text, "make room, or move `artefacts:`")
