# SPDX-License-Identifier: Apache-2.0
"""The commands that draw pictures beside the stages: `sis edit`, `sis trace`, `sis figure`.

Each is a function from parsed arguments to the files that it wrote; `sis.cli` prints their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sis.cli_words import named_run

if TYPE_CHECKING:
    from sis.publish.figures import Choice

_Commands = argparse._SubParsersAction


def add_picture_commands(commands: _Commands, run: Callable[[argparse.Namespace], None]) -> None:
    """Add the commands; `run` calls `arguments.draw(arguments)` and tells which files came of it."""
    _edit_command(commands, run)
    _trace_command(commands, run)
    text = "draw a figure of finished image sets"
    figure = commands.add_parser("figure", help=text, description=_sentence(text))
    kinds = figure.add_subparsers(title="figures", metavar="FIGURE", required=True, help="what to draw")
    samples = kinds.add_parser("multimodal", help="many samples of one run", description="Many samples of one run.")
    samples.add_argument("--samples", type=int, default=0, help="samples a label map (default: up to 6)")
    compared = kinds.add_parser("comparison", help="one sample of every run", description="One sample of every run.")
    for parser, draw in ((samples, _multimodal), (compared, _comparison)):
        _figure_arguments(parser)
        parser.set_defaults(run=run, draw=draw)


def _edit_command(commands: _Commands, run: Callable[[argparse.Namespace], None]) -> None:
    text = "draw a photograph anew where its label map was changed (RePaint)"
    edit = commands.add_parser("edit", help=text, description=_sentence(text))
    edit.add_argument("image", type=Path, help="photograph (PNG) of the dataset's size")
    edit.add_argument("label", type=Path, help="its label map: grey PNG of ids of the label table")
    edit.add_argument("edited_label", type=Path, help="the label map that it shall have")
    _model_arguments(edit)
    edit.add_argument("--out", required=True, type=Path, help="the edited picture (.png)")
    edit.add_argument("--instance", type=Path, help="instance map (16-bit PNG), where the dataset's edges need one")
    edit.add_argument("--edited-instance", type=Path, help="the instance map that it shall have")
    edit.add_argument("--rounds", type=int, default=10, help="resampling rounds; 1: Eq. 12 as printed (default: 10)")
    edit.add_argument("--jump", type=int, default=10, help="steps that a round goes back (default: 10)")
    edit.add_argument("--steps", type=int, default=0, help="steps of the chain (default: those of the run)")
    edit.add_argument("--grow", type=int, default=3, help="pixels that the region is grown by (default: 3)")
    edit.add_argument("--seed", type=int, default=-1, help="seed of the noise (default: the experiment's)")
    edit.add_argument("--samples", type=int, default=1, help="pictures to draw (default: 1)")
    edit.set_defaults(run=run, draw=_edit)


def _trace_command(commands: _Commands, run: Callable[[argparse.Namespace], None]) -> None:
    text = "show what a diffusion model predicts, step by step, in sampling and in training"
    trace = commands.add_parser("trace", help=text, description=_sentence(text))
    _model_arguments(trace)
    trace.add_argument("--pairs", required=True, type=Path, help="prepared pairs (folder or its manifest)")
    trace.add_argument("--image-id", required=True, help="which of them")
    trace.add_argument("--frames", type=int, default=10, help="steps to show (default: 10)")
    trace.add_argument("--out", required=True, type=Path, help="folder of the pictures")
    trace.set_defaults(run=run, draw=_trace)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", required=True, help="name or file of the experiment")
    parser.add_argument("--dataset", required=True, help="dataset of the experiment")
    parser.add_argument("--run", dest="run_name", required=True, help="run of the experiment (name, or id with hash)")
    parser.add_argument("--model", type=Path, help="trained model, for methods that train")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def _figure_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", required=True, help="name or file of the experiment")
    parser.add_argument("--dataset", default="", help="dataset of the experiment (default: its only one)")
    parser.add_argument("--run", dest="runs", action="append", default=[], help="a run; repeat it for several")
    parser.add_argument("--ids", nargs="+", default=[], help="label maps to show")
    parser.add_argument("--maps", type=int, default=4, help="how many label maps, evenly spaced (default: 4)")
    parser.add_argument("--artefacts", default="", help="root of the artefacts (default: by config/config.yaml)")
    parser.add_argument("--out", required=True, type=Path, help="the figure (.png)")


def _edit(arguments: argparse.Namespace) -> list[Path]:
    from sis.device import prepare_device
    from sis.diffusion.repaint import Resampling
    from sis.sampling.edit import EditJob, edit

    spec = named_run(arguments)
    job = EditJob(
        spec, arguments.image, arguments.label, arguments.edited_label, arguments.out, arguments.model,
        arguments.instance, arguments.edited_instance, Resampling(arguments.rounds, arguments.jump), arguments.grow,
        arguments.steps, arguments.seed, arguments.samples, prepare_device(arguments.device, spec.threads),
    )  # fmt: skip
    return edit(job)


def _trace(arguments: argparse.Namespace) -> list[Path]:
    from sis.device import prepare_device
    from sis.sampling.trace import TraceJob, trace

    spec = named_run(arguments)
    device = prepare_device(arguments.device, spec.threads)
    job = TraceJob(
        spec, arguments.pairs, arguments.image_id, arguments.out, arguments.model, arguments.frames, device
    )  # fmt: skip
    return trace(job)


def _multimodal(arguments: argparse.Namespace) -> list[Path]:
    from sis.publish.figures import multimodal

    return multimodal(_choice(arguments, arguments.samples), arguments.out)


def _comparison(arguments: argparse.Namespace) -> list[Path]:
    from sis.publish.figures import comparison

    return comparison(_choice(arguments), arguments.out)


def _choice(arguments: argparse.Namespace, samples: int = 0) -> Choice:
    from sis.publish.figures import Choice

    return Choice(
        arguments.experiment, arguments.dataset, tuple(arguments.runs), tuple(arguments.ids), arguments.maps, samples,
        arguments.artefacts,
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
