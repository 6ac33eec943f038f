# SPDX-License-Identifier: Apache-2.0
"""The command `sis eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

_TEXT = "judge a folder of images, or an image set, by a protocol; the table goes to the terminal, Parquet and JSON"


def add_eval_command(commands: argparse._SubParsersAction) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "eval", help="judge a folder of images, or an image set", description=_TEXT[0].upper() + _TEXT[1:] + "."
    )
    parser.set_defaults(run=_eval)
    parser.add_argument("source", type=Path, metavar="FOLDER|IMAGE_SET", help="pictures (PNG), or an image set")
    parser.add_argument(
        "--dataset", default="", help="dataset whose label maps were drawn (an image set knows its own)"
    )
    parser.add_argument("--protocol", default="", help="how to judge (default: DATASET_bench, else the dataset's own)")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="METRIC", help="these alone (default: all)")
    parser.add_argument(
        "--controls", nargs="+", default=["real"], metavar="CONTROL", help="rows beside it, or none (default: real)"
    )
    parser.add_argument("--pattern", default="", help="file names, with {image_id}, {sample}, `*` (default: found out)")
    parser.add_argument("--samples", type=int, default=0, help="images a label map (default: found out)")
    parser.add_argument("--name", default="", help="name of the run (default: the folder's)")
    parser.add_argument("--title", default="", help="name in tables (default: the run's)")
    parser.add_argument("--threads", type=int, default=0, help="threads of a job (default: one a core)")
    parser.add_argument("--out", type=Path, help="folder of the table (default: results/eval/NAME)")


def _eval(arguments: argparse.Namespace) -> None:
    from sis.evaluation.evaluate import evaluate
    from sis.evaluation.request import Request

    request = Request(
        source=arguments.source,
        dataset=arguments.dataset,
        protocol=arguments.protocol,
        metrics=tuple(arguments.metrics),
        controls=tuple(arguments.controls),
        name=arguments.name,
        title=arguments.title,
        pattern=arguments.pattern,
        samples=arguments.samples,
        threads=arguments.threads,
        out=arguments.out,
    )
    evaluation = evaluate(request)
    print("\n".join(evaluation.lines))  # noqa: T201
    for path in evaluation.files:
        print(f"wrote {path}")  # noqa: T201
