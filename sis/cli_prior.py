# SPDX-License-Identifier: Apache-2.0
"""The commands of stage 3: compute a prior, whole or in parts, and describe it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sis.cli_words import Commands, add_command, add_run_words, named_run
from sis.errors import SisError


def add_prior_commands(commands: Commands) -> None:
    """`sis prior` and `sis prior-report`."""
    prior = _command(commands, "prior", _prior, "stage 3: compute the prior of a run")
    prior.add_argument("--pairs", type=Path, help="prepared pairs of the train split (folder or its manifest)")
    prior.add_argument("--latents", type=Path, help="the encoded training split, for methods that read one")
    parts = prior.add_mutually_exclusive_group()
    parts.add_argument("--shard", default="", metavar="I/N", help="statistics over part I (from 0) of N, to be merged")
    parts.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="make the prior of all parts")
    prior.add_argument("--out", required=True, type=Path, help="the prior's file (.safetensors)")

    report = _command(commands, "prior-report", _report, "show what a prior rests on: counts, fall-backs, pictures")
    report.add_argument("--prior", required=True, type=Path, help="the prior's file")
    report.add_argument("--pairs", required=True, type=Path, help="prepared pairs whose label maps are looked up")
    report.add_argument("--autoencoder", required=True, type=Path, help="the model that decodes the pictures")
    report.add_argument("--out", required=True, type=Path, help="folder of prior.json, prior.md and prior.png")


def _command(commands: Commands, name: str, function: object, text: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, function, text)
    add_run_words(parser)
    return parser


def _prior(arguments: argparse.Namespace) -> None:
    from sis.device import prepare_device
    from sis.methods.build import UsedFiles
    from sis.training.prior import Part, compute_prior, merge_priors

    spec = named_run(arguments)
    if arguments.merge:
        merge_priors(spec, arguments.merge, arguments.out)
        return
    if arguments.pairs is None:
        raise SisError("a prior is computed from training pairs", fix="give --pairs, or --merge FILE ...")
    latents = arguments.latents
    if latents is not None and latents.name == "manifest.json":
        latents = latents.parent
    part = Part(*_numbers(arguments.shard)) if arguments.shard else None
    device = prepare_device(arguments.device, spec.threads)
    compute_prior(spec, arguments.pairs, arguments.out, device, UsedFiles(latents=latents), part)


def _numbers(shard: str) -> tuple[int, int]:
    index, _, count = shard.partition("/")
    if not index.isdigit() or not count.isdigit():
        raise SisError(f"--shard {shard!r} is no part of anything", fix="write --shard 0/4 to --shard 3/4")
    return int(index), int(count)


def _report(arguments: argparse.Namespace) -> None:
    from sis.device import prepare_device
    from sis.training.prior import describe_prior

    spec = named_run(arguments)
    device = prepare_device(arguments.device, spec.threads)
    describe_prior(spec, arguments.prior, arguments.pairs, arguments.autoencoder, arguments.out, device)
    print((arguments.out / "prior.md").read_text(), end="")  # noqa: T201
