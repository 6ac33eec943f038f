# SPDX-License-Identifier: Apache-2.0
"""The commands that make a run: train, encode, prior and sample, here or, for train and sample, in jobs elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sis.cli_prior import add_prior_commands
from sis.cli_words import Commands, add_command, add_run_words, named_run
from sis.errors import SisError

if TYPE_CHECKING:
    from sis.methods.build import UsedFiles
    from sis.plan import RunSpec
    from sis.sampling.job import SampleJob


def add_run_commands(commands: Commands) -> None:
    """`sis train`, `encode`, `prior`, `sample`."""
    train = _command(commands, "train", _train, "stage 2: train the model of a run (docs/training.md)")
    text = "go on from a state of other code, another device or number of processes; recorded in the model's facts"
    train.add_argument("--resume-other", action="store_true", help=text)
    train.add_argument("--latents", type=Path, help="the encoded training split, for methods that read one")
    encode = _command(commands, "encode", _encode, "encode the training split by a run's autoencoder")
    encode.add_argument("--model", type=Path, required=True, help="the trained autoencoder")
    encode.add_argument("--mirrored", action="store_true", help="encode every mirrored picture too")
    add_prior_commands(commands)
    sample = _command(commands, "sample", _sample, "stage 4: make the image set of a run")
    sample.add_argument("--styles", type=Path, help="pairs of the train split, for methods with references")
    sample.add_argument("--model", type=Path, help="trained model, for methods that train")
    sample.add_argument("--prior", type=Path, help="prior, for methods that have one")
    sample.add_argument("--shards", type=int, default=0, help="cut into so many shards (default: by shard size)")
    text = "make only this shard (from 0); may be given several times"
    sample.add_argument("--shard", type=int, action="append", default=[], help=text)
    for stage in (train, sample):
        text = "model of a role that the run names under `uses:`, once a role"
        stage.add_argument("--uses", action="append", default=[], metavar="ROLE=MODEL", help=text)
        text = "here, or as jobs of Slurm or of this machine, which may be interrupted (docs/slurm.md; default: inline)"
        stage.add_argument("--launcher", choices=["inline", "local", "slurm"], default="inline", help=text)
        text = "refuse unless the experiment still gives the run's model (train) or images (sample) this id"
        stage.add_argument("--expect", default="", metavar="ID", help=text)


def _command(commands: Commands, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, function, text)
    add_run_words(parser)
    parser.add_argument("--pairs", required=True, type=Path, help="prepared pairs (folder or its manifest)")
    parser.add_argument("--out", required=True, type=Path, help="where the result goes")
    return parser


def folder_of(path: Path) -> Path:
    """A folder artefact may be named by its manifest, as the workflow does."""
    return path.parent if path.name == "manifest.json" else path


def _expected(arguments: argparse.Namespace, found: str) -> None:
    """A job may wait for days while somebody edits the experiment."""
    if arguments.expect and arguments.expect != found:
        what = f"experiment {arguments.experiment} now calls this {found}, not {arguments.expect}"
        raise SisError(what, fix="its configuration changed; start the workflow again")


def _train(arguments: argparse.Namespace) -> int | None:
    if arguments.launcher != "inline":
        from sis.cli_launch import launch_training

        return launch_training(arguments, named_run(arguments), _roles(arguments))

    from sis.device import prepare_device
    from sis.notice import told_by_signal
    from sis.training.ranks import joined
    from sis.training.train import train_model

    with told_by_signal() as notice, joined(arguments.device) as (ranks, device):
        with ranks.together():
            spec = named_run(arguments)
            _expected(arguments, spec.model_id)
            device = prepare_device(device, spec.threads)
            used = _used(arguments)
        train_model(spec, arguments.pairs, arguments.out, device, ranks, arguments.resume_other, used, notice)
    return None


def _used(arguments: argparse.Namespace) -> UsedFiles:
    from sis.methods.build import UsedFiles

    return UsedFiles(_roles(arguments), folder_of(arguments.latents) if arguments.latents else None)


def _roles(arguments: argparse.Namespace) -> dict[str, Path]:
    """`--uses role=path` as a dictionary."""
    pairs = [word.partition("=") for word in getattr(arguments, "uses", [])]
    for role, _, path in pairs:
        if not role or not path:
            raise SisError(f"--uses {role!r} names no file", fix="write --uses ROLE=MODEL")
    return {role: Path(path) for role, _, path in pairs}


def _encode(arguments: argparse.Namespace) -> None:
    from sis.device import prepare_device
    from sis.training.encode import encode_split

    spec = named_run(arguments)
    device = prepare_device(arguments.device, spec.threads)
    encode_split(spec, arguments.pairs, arguments.model, arguments.mirrored, folder_of(arguments.out), device)


def _sample(arguments: argparse.Namespace) -> int | None:
    spec = named_run(arguments)
    _expected(arguments, spec.run_id)
    if min(arguments.shard, default=0) < 0:
        raise SisError(f"there is no shard {min(arguments.shard)}", fix="shards count from 0")
    job = _sample_job(arguments, spec)
    if arguments.launcher != "inline":
        from sis.cli_launch import launch_sampling

        return launch_sampling(arguments, job)

    from sis.device import prepare_device
    from sis.notice import told_by_signal
    from sis.sampling.run import sample_run

    device = prepare_device(arguments.device, spec.threads)
    with told_by_signal() as notice:
        sample_run(replace(job, device=device, notice=notice))
    return None


def _sample_job(words: argparse.Namespace, spec: RunSpec) -> SampleJob:
    from sis.sampling.job import SampleJob

    return SampleJob(
        spec,
        words.pairs,
        folder_of(words.out),
        words.model,
        words.prior,
        words.device,
        words.shards,
        words.shard,
        _roles(words),
        words.styles,
    )
