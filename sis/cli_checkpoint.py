# SPDX-License-Identifier: Apache-2.0
"""The commands about files of weights: look into them, bring them in, write models back out."""

from __future__ import annotations

import argparse
from pathlib import Path

from sis.cli_words import Commands, add_command


def add_checkpoint_commands(commands: Commands) -> None:
    """`sis checkpoint inspect|import|export`."""
    text = "look into checkpoints of others, bring them in as models, write models back out"
    checkpoint = commands.add_parser("checkpoint", help=text, description=text[0].upper() + text[1:] + ".")
    actions = checkpoint.add_subparsers(title="actions", metavar="ACTION", required=True, help="what to do")

    look = add_command(
        actions, "inspect", _checkpoint_inspect, "tell what a file of weights is and which network it fits"
    )
    look.add_argument("file", type=Path, help="checkpoint, folder of diffusers, or a model of ours")

    bring = add_command(actions, "import", _checkpoint_import, "make the model of a run of somebody's checkpoint")
    bring.add_argument("file", type=Path, help="checkpoint (.pt, .ckpt, .safetensors) or a folder of diffusers")
    bring.add_argument("--experiment", required=True, help="name or file of the experiment")
    bring.add_argument("--dataset", required=True, help="dataset of the experiment")
    bring.add_argument("--run", dest="run_name", required=True, help="run of the experiment (name, or id with hash)")
    bring.add_argument(
        "--weights", choices=["ema", "raw"], default="not stated", help="what they are; recorded, since no file tells"
    )
    bring.add_argument("--out", required=True, type=Path, help="the model's file (.safetensors)")

    export = add_command(actions, "export", _checkpoint_export, "write a model as a checkpoint of an upstream format")
    export.add_argument("model", type=Path, help="model of ours")
    export.add_argument("--format", required=True, help="upstream format, as `inspect` calls it")
    export.add_argument("--out", required=True, type=Path, help="the checkpoint's file (.pt)")


def add_average_command(commands: Commands) -> None:
    """`sis average`."""
    average = add_command(commands, "average", _average, "make a run's model: the mean of the best of some")
    average.add_argument("--experiment", required=True, help="name or file of the experiment")
    average.add_argument("--dataset", required=True, help="dataset of the experiment")
    average.add_argument("--run", dest="run_name", required=True, help="the run with `ensemble:` (name, or id)")
    average.add_argument("--scores", nargs="+", type=Path, required=True, help="score table of each member, in order")
    average.add_argument("--models", nargs="+", type=Path, required=True, help="model of each member, in order")
    average.add_argument("--out", required=True, type=Path, help="the model's file (.safetensors)")


def _average(arguments: argparse.Namespace) -> None:
    from sis.plan import load_plan
    from sis.training.ensemble import average_best

    spec = load_plan(experiment=arguments.experiment).spec(arguments.dataset, arguments.run_name)
    made = average_best(spec, arguments.scores, arguments.models, arguments.out)
    print(f"wrote {arguments.out}: the mean of {' and '.join(made.meta['ensemble']['chosen'])}")  # noqa: T201


def _checkpoint_inspect(arguments: argparse.Namespace) -> None:
    from sis.checkpoints.artefact import inspect

    for name, value in inspect(arguments.file).items():
        print(f"{name:15} {value}")  # noqa: T201


def _checkpoint_import(arguments: argparse.Namespace) -> None:
    import torch

    from sis.checkpoints.artefact import Target, import_model
    from sis.methods.build import build_method
    from sis.plan import load_plan

    spec = load_plan(experiment=arguments.experiment).spec(arguments.dataset, arguments.run_name)
    with torch.device("meta"):  # shapes alone: every weight comes from the file
        method = build_method(spec, "meta", None, None)
    fit, width = method.fit_params.model_dump(), method.context.labels.width
    target = Target(spec.method.name, spec.model_id, spec.dataset.name, fit, width)
    import_model(arguments.file, arguments.weights, method.network, target, arguments.out)
    print(f"wrote {arguments.out}")  # noqa: T201


def _checkpoint_export(arguments: argparse.Namespace) -> None:
    from sis.checkpoints.artefact import export_model

    digest = export_model(arguments.model, arguments.format, arguments.out)
    print(f"wrote {arguments.out} (sha256 {digest})")  # noqa: T201
