# SPDX-License-Identifier: Apache-2.0
"""`sis train|sample --launcher slurm|local`: the same command as jobs, which this process follows."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from sis.cli import main
from sis.config.files import settings
from sis.data.manifest import manifest_path, read_manifest, stable_hash
from sis.errors import first_of
from sis.launch.launcher import Launcher, Work
from sis.plan import RunSpec
from sis.sampling.job import SampleJob


def launch_training(arguments: argparse.Namespace, spec: RunSpec, roles: dict[str, Path]) -> int:
    """Train a run's model in a job; returns 0, or the job's exit code."""
    out: Path = arguments.out
    inputs = _digests([arguments.pairs, arguments.latents, *(path for _, path in sorted(roles.items()))])
    work = Work(
        title=f"train {spec.dataset.name}/{spec.model_id}",
        key=stable_hash(["train", spec.model_id, inputs, arguments.device, arguments.resume_other], 16),
        outputs=[manifest_path(out), out],
        spare=out.parent / "work",
        main=main,
        argv=_inline(arguments, expect=spec.model_id),
        needs=spec.needs("train"),
        missing=lambda: [] if out.exists() else [0],
        arguments=lambda _: [],
        done=lambda: _steps(out.parent / "work"),
    )
    return Launcher(work, arguments.launcher, settings().slurm).run()


def launch_sampling(arguments: argparse.Namespace, job: SampleJob) -> int:
    """Sample a run's images in an array of jobs; returns 0, or the exit code of the first that failed."""
    spec, pairs = job.spec, job.open_pairs()
    parts = job.parts(pairs, "")
    asked = [part.index for part in job.chosen(parts)]
    sizes = {part.index: len(part.keys) for part in parts}

    def missing() -> list[int]:
        return [index for index in job.missing(pairs) if index in asked]

    def units(indices: list[int]) -> int:
        return sum(sizes[index] for index in indices)

    def shards(indices: list[int]) -> list[str]:
        return [word for index in indices for word in ("--shard", str(index))]

    whole = len(asked) == len(parts)
    work = Work(
        title=f"sample {spec.dataset.name}/{spec.run_id}",
        key=stable_hash(["sample", job.key, job.shards, asked, arguments.device], 16),
        outputs=[job.out / "manifest.json"] if whole else [job.out / parts[index].name for index in asked],
        spare=job.out / "work",
        main=main,
        argv=_inline(arguments, expect=spec.run_id),
        needs=spec.needs("sample"),
        missing=missing,
        arguments=shards,
        total=units(asked),
        units=lambda part: units(part or asked),
        done=lambda: units(asked) - units(missing()),
        explain=lambda: _explained(job),
    )
    return Launcher(work, arguments.launcher, settings().slurm).run()


def _inline(arguments: argparse.Namespace, expect: str) -> list[str]:
    """The words of a command as they are given to a job: it runs there, all of it but shards is the same."""
    words, kept = list(arguments.words), []
    dropped = ("--launcher", "--expect", "--shard")
    while words:
        word = words.pop(0)
        if word in dropped:
            words.pop(0)
        elif not word.startswith(tuple(f"{name}=" for name in dropped)):
            kept.append(word)
    return [*kept, "--launcher", "inline", "--expect", expect]


def _digests(inputs: Iterable[Path | None]) -> list[str]:
    return [read_manifest(path, verify=False).digest for path in inputs if path is not None]


def _steps(states: Path) -> int:
    """Steps behind the newest state of a training."""
    found = [path.stem.removeprefix("state-") for path in states.glob("state-*.safetensors")]
    return max((int(number) for number in found if number.isdigit()), default=0)


def _explained(job: SampleJob) -> str:
    """Shards of several devices are different sets: their bits differ."""
    devices = set(job.devices(job.open_pairs()).values())
    if len(devices) < 2:
        return ""
    return f": its shards were made on {first_of(sorted(devices))}; name one kind in `slurm: {{gpu_type: ...}}`"
