# SPDX-License-Identifier: Apache-2.0
"""Words that the commands share: how one is added, how a run is named, and the run that is meant."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sis.plan import RunSpec

Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, function: object, text: str) -> argparse.ArgumentParser:
    """A command that calls `function`; `text` is what it does, without a full stop."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=function)
    return parser


def add_run_words(parser: argparse.ArgumentParser) -> None:
    """The words that name a run of an experiment, and the device."""
    parser.add_argument("--experiment", required=True, help="name or file of the experiment")
    parser.add_argument("--dataset", required=True, help="dataset of the experiment")
    # torchrun takes `--run` for an option of its own, cut short.
    text = "run of the experiment (name, or id with hash)"
    parser.add_argument("--run", "--run-name", dest="run_name", required=True, metavar="RUN", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def named_run(arguments: argparse.Namespace) -> RunSpec:
    """The run that the words name. Raises SisError when there is none."""
    from sis.plan import load_plan

    return load_plan(experiment=arguments.experiment).spec(arguments.dataset, arguments.run_name)
