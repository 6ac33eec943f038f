# SPDX-License-Identifier: Apache-2.0
"""`python -m evaluators`: train the judge, measure images, score them; every path is an argument."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.compare_cli import register as register_comparisons
from evaluators.weights_cli import register as register_weights
from sis.errors import SisError

if TYPE_CHECKING:
    from evaluators.weights import WeightStore


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a SisError becomes one line on stderr and exit code 2."""
    code = 0
    try:
        try:
            code = _run(argv)
        finally:  # also behind `--help`, which leaves by SystemExit
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) went away: nothing is wrong and nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if "threads" in arguments:
            _set_threads(arguments.threads)
        arguments.command(arguments)
    except SisError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished work is kept, run the same command again\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluators", description="Judge images made from label maps.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(commands, "train-segmenter", _train_segmenter, "train the protocol's judge on real pairs")
    train.add_argument("--pairs", type=_folder, required=True, metavar="DIR", help="prepared training pairs")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights to write (.safetensors)")

    measure = _command(commands, "measure", _measure, "reduce an image set, or the real reference, to partials")
    what = measure.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=_folder, metavar="DIR", help="image set to measure (with --pairs)")
    what.add_argument(
        "--reference-pairs", type=_folder, metavar="DIR", help="pairs whose real images are the reference"
    )
    measure.add_argument("--pairs", type=_folder, metavar="DIR", help="pairs with the image set's label maps")
    measure.add_argument("--full-labels", type=_folder, metavar="DIR", help="pairs with the label maps at full size")
    measure.add_argument("--styles", type=_folder, metavar="DIR", help="pairs with the photographs of `styles`")
    measure.add_argument(
        "--segmenter", type=Path, metavar="FILE", help="the protocol's segmenter, if it is trained here (.safetensors)"
    )
    measure.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    measure.add_argument("--out", type=_folder, required=True, metavar="DIR", help="folder of partials to write")
    _weights_arguments(measure)

    score = _command(commands, "score", _score, "turn partials into a table of scores")
    score.add_argument("--partials", type=_folder, required=True, metavar="DIR", help="partials of the image set")
    score.add_argument("--reference", type=_folder, required=True, metavar="DIR", help="partials of the reference")
    score.add_argument("--out", type=Path, required=True, metavar="FILE", help="scores to write (.parquet)")

    columns = _command(commands, "columns", _columns, "list a protocol's columns: real, or lacking which weights")
    columns.add_argument("--json", action="store_true", help="as JSON")
    _weights_arguments(columns)

    register_weights(commands)
    register_comparisons(commands)
    listing = commands.add_parser("list", help="list metrics and segmenters")
    listing.set_defaults(command=_list)
    check = commands.add_parser("check", help="run the contract of one metric on made-up images")
    check.set_defaults(command=_check)
    check.add_argument("name", help="a file stem in evaluators/metrics")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], None],
    text: str,
) -> argparse.ArgumentParser:
    """A subcommand with the options that all working commands share."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument("--protocol", required=True, metavar="NAME|FILE", help="a card of config/protocols")
    parser.add_argument("--threads", type=_threads, default=1, metavar="N", help="CPU threads (%(default)s)")
    return parser


def _weights_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder of external weights (%(default)s)"
    parser.add_argument("--weights", type=_folder, default=Path("weights"), metavar="DIR", help=text)
    text = "what may lie there (config/weights.yaml of the project)"
    parser.add_argument("--weights-list", type=Path, metavar="FILE", help=text)


def _folder(text: str) -> Path:
    """A folder artefact may be named by its manifest, as the workflow does."""
    path = Path(text)
    return path.parent if path.name == "manifest.json" else path


def _threads(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise argparse.ArgumentTypeError(f"a number from 1 on, found {text!r}")
    return int(text)


def _train_segmenter(arguments: argparse.Namespace) -> None:
    from evaluators.discovery import find_segmenter
    from sis.config.files import named
    from sis.config.protocols import ProtocolCard
    from sis.data.pairs import PairSet

    card = named("protocols", arguments.protocol, ProtocolCard)
    recipe = card.trained_segmenter()
    if recipe is None:
        raise SisError(f"protocol {card.name!r} trains no segmenter", fix="its weights come from config/weights.yaml")
    pairs = PairSet.open(arguments.pairs)
    with _shown(f"segmenter {recipe.name}", "steps") as progress:
        find_segmenter(recipe.name).train(pairs, recipe, arguments.out, progress)


def _measure(arguments: argparse.Namespace) -> None:
    from evaluators.measure import measure_images, measure_reference
    from evaluators.networks import Networks, device_called
    from evaluators.sources import Companions
    from sis.config.files import named
    from sis.config.protocols import ProtocolCard
    from sis.data.pairs import PairSet

    if (arguments.images is None) != (arguments.pairs is None):
        raise SisError("--images and --pairs belong together", fix="give both, or --reference-pairs alone")
    card = named("protocols", arguments.protocol, ProtocolCard)
    networks = Networks(arguments.segmenter, _store(arguments), device_called(arguments.device))
    companions = Companions(
        PairSet.open(arguments.full_labels) if arguments.full_labels else None,
        PairSet.open(arguments.styles) if arguments.styles else None,
    )
    with _shown(f"measure {arguments.out.name}", "images") as progress:
        if arguments.images is None:
            measure_reference(arguments.reference_pairs, card, networks, arguments.out, progress)
        else:
            measure_images(arguments.images, arguments.pairs, card, networks, arguments.out, progress, companions)


def _score(arguments: argparse.Namespace) -> None:
    from evaluators.score import score
    from sis.config.files import named
    from sis.config.protocols import ProtocolCard

    card = named("protocols", arguments.protocol, ProtocolCard)
    table = score(arguments.partials, arguments.reference, card, arguments.out)
    for row in table.to_pylist():
        if row["class_name"] == "":
            sys.stdout.write(f"{row['metric']:<48} {_spelled(row)}\n")


def _spelled(row: dict) -> str:
    """A score as people read it: value, unit, interval, or the reason why there is none."""
    if row["value"] is None:
        return f"undefined: {row['note']}"
    bounds = "" if row["low"] is None else f" [{row['low']:.4g}, {row['high']:.4g}]"
    return f"{row['value']:.4g}{' ' if row['unit'] else ''}{row['unit']}{bounds}"


def _columns(arguments: argparse.Namespace) -> None:
    from evaluators.columns import columns_of
    from sis.config.files import named
    from sis.config.protocols import ProtocolCard

    found = columns_of(named("protocols", arguments.protocol, ProtocolCard), _store(arguments))
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(column) for column in found]) + "\n")
        return
    for column in found:
        lacking = f"a stand-in: {', '.join(column.missing)} not here" if column.missing else "real"
        sys.stdout.write(f"{column.name:<36} {lacking}\n")


def _store(arguments: argparse.Namespace) -> WeightStore:
    from evaluators.weights import WeightStore
    from sis.config.files import project_root

    return WeightStore.open(arguments.weights, arguments.weights_list or project_root() / "config" / "weights.yaml")


def _list(arguments: argparse.Namespace) -> None:
    from evaluators.discovery import find_metric, stems

    for stem in stems("metrics"):
        module = find_metric(stem).module
        sys.stdout.write(f"metric     {stem:<14} {module.TITLE} ({module.DIRECTION} is better)\n")
    for stem in stems("segmenters"):
        sys.stdout.write(f"segmenter  {stem}\n")


def _check(arguments: argparse.Namespace) -> None:
    from evaluators.check import check_metric

    for line in check_metric(arguments.name):
        sys.stdout.write(f"ok  {line}\n")


def _set_threads(threads: int) -> None:
    """Bound the threads of linear algebra; to be called before the first import of numpy."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


@contextmanager
def _shown(title: str, unit: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A progress callback that draws a bar or logs lines; nothing is shown when there is nothing to do."""
    from sis.progress import Progress

    bars: list[Progress] = []

    def progress(done: int, total: int, extra: dict[str, float]) -> None:
        if not bars:
            bars.append(Progress(title, total, unit).__enter__())
        bars[0].update(done - bars[0].done, **extra)

    try:
        yield progress
    finally:
        for bar in bars:
            bar.__exit__(*sys.exc_info())
