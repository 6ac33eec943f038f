# SPDX-License-Identifier: Apache-2.0
"""What Snakemake's slurm executor is told of a rule's jobs: the cards' needs in its words."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sis.config.cluster import Needs, SlurmSite

#: Time limit of what takes minutes.
_LIGHT_HOURS = 2.0

Resource = str | Callable[[Any], str | int]


def native_resources(
    site: SlurmSite, needs: Callable[[Any], Needs], hours: float | None = None
) -> dict[str, Resource]:  # fmt: skip
    """The `resources:` of a rule that runs as a Slurm job of its own, or as a part of one.

    needs: of the job with these wildcards. hours: a time limit instead of theirs. They are resources and never params,
    since where a job runs must not invalidate finished work. Options that the site leaves empty are left out: an empty
    `--qos` is refused.
    """
    found: dict[str, Resource] = {
        "gres": lambda wildcards: gres(site, needs(wildcards)),
        "cpus_per_task": lambda wildcards: needs(wildcards).cpus or 1,
        "mem_mb": lambda wildcards: megabytes(needs(wildcards)),
        "runtime": lambda wildcards: math.ceil(hours * 60) if hours else minutes(needs(wildcards)),
    }
    if site.partition or site.cpu_partition:
        found["slurm_partition"] = lambda wildcards: partition(site, needs(wildcards))
    fixed = {"slurm_account": site.account, "qos": site.qos, "constraint": site.constraint, "slurm_extra": extra(site)}
    return found | {name: text for name, text in fixed.items() if text}


def light(needs: Needs) -> Needs:
    """What a single process asks for that reads artefacts once: a dataset's card, an import, a mean of models."""
    return needs.model_copy(update={"cpus": 1, "hours": min(_LIGHT_HOURS, needs.hours or _LIGHT_HOURS)})


def partition(site: SlurmSite, needs: Needs) -> str:
    """The partition of a job; empty: Slurm's default."""
    return site.partition if needs.gpus else site.cpu_partition or site.partition


def gres(site: SlurmSite, needs: Needs) -> str:
    """The generic resources of a job, as `gpu:a100:2`; empty without GPUs."""
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    return f"gpu:{kind}{needs.gpus}" if needs.gpus else ""


def megabytes(needs: Needs) -> int:
    """Memory a node, MiB."""
    return math.ceil((needs.memory_gb or 1) * 1024)


def minutes(needs: Needs) -> int:
    """Time limit of a job, whole minutes."""
    return math.ceil((needs.hours or 1) * 60)


def extra(site: SlurmSite) -> str:
    """Further options of sbatch."""
    options = {"exclude": site.exclude, **site.extra}
    return " ".join(f"--{name}={shlex.quote(value)}" for name, value in options.items() if value)


def setup(site: SlurmSite) -> str:
    """The site's shell commands for Snakemake's `shell.prefix`; they run inside Slurm's jobs alone."""
    commands = "; ".join(site.setup)
    text = f'if [ -n "${{SLURM_JOB_ID:-}}" ]; then {commands}; fi; ' if commands else ""
    return text.replace("{", "{{").replace("}", "}}")  # Snakemake fills single braces in


def prefer_commands(folder: Path) -> None:
    """Let this process and what it starts find the commands of a folder first."""
    first, paths = str(folder), os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([first, *(path for path in paths if path != first)])
