# SPDX-License-Identifier: Apache-2.0
"""Commands of the judges under the name `sis`: they run `python -m evaluators`, which this package never imports."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sis.cli_words import Commands, add_command
from sis.errors import SisError, did_you_mean, first_of

if TYPE_CHECKING:
    from sis.plan import Plan, RunSpec

#: Commands that are handed over word by word, and what they do.
HANDED_OVER = {"weights": "list, check and convert the external weights of the judging networks"}


def handed_over(words: Sequence[str]) -> int | None:
    """Run a command that is the judges' own as it stands; None for any other command."""
    return _evaluators(words[0], list(words[1:])) if words and words[0] in HANDED_OVER else None


def add_judging_commands(commands: Commands) -> None:
    """Add the commands; what they find they hand to `python -m evaluators`."""
    for name, text in HANDED_OVER.items():
        commands.add_parser(name, help=text)
    text = "compare two runs on the same label maps: differences with intervals and significance (docs/compare.md)"
    compare = add_command(commands, "compare", _compare, text)
    compare.add_argument("a", metavar="A", help="run of the experiment (name, or id with hash), or folder of partials")
    compare.add_argument("b", metavar="B", help="the other")
    _place_arguments(compare, required=False)
    compare.add_argument("--protocol", help="of two folders of partials: the protocol that they were measured under")
    compare.add_argument("--reference", help="of two folders of partials: partials of the reference")
    compare.add_argument("--metrics", nargs="+", default=[], help="names or stems (default: those of the protocol)")
    compare.add_argument("--classes", action="store_true", help="every class, too")
    text = "bootstrap replicates (default: the protocol's); more of them resolve smaller p-values"
    compare.add_argument("--replicates", help=text)
    compare.add_argument("--gallery", type=Path, help="page (.html) or sheet (.png) of the largest wins and losses")
    compare.add_argument("--by", help="metric that chooses the pictures (default: the first that can)")
    compare.add_argument("--shown", help="wins and losses (default: 8)")
    compare.add_argument("--answers", action="store_true", help="show what the protocol's segmenter sees, too")
    compare.add_argument("--out", type=Path, help="folder for comparison.json and comparison.parquet")

    gallery = add_command(commands, "gallery", _gallery, "draw the worst and the best images of a run by a metric")
    gallery.add_argument("run_name", metavar="RUN", help="run of the experiment (name, or id with hash)")
    _place_arguments(gallery, required=True)
    gallery.add_argument("--metric", help="metric that chooses the pictures (default: the first that can)")
    gallery.add_argument("--worst", help="how many of the worst (default: 8)")
    gallery.add_argument("--best", help="how many of the best (default: 8)")
    gallery.add_argument("--answers", action="store_true", help="show what the protocol's segmenter sees, too")
    gallery.add_argument("--out", type=Path, required=True, help="page (.html) or sheet (.png)")


def _place_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--experiment", required=required, default="", help="name or file of the experiment")
    parser.add_argument("--dataset", default="", help="dataset of the experiment (default: its only one)")
    parser.add_argument("--artefacts", default="", help="root of the artefacts (default: by config/config.yaml)")


def _compare(arguments: argparse.Namespace) -> int:
    options = ["metrics", "classes", "replicates", "gallery", "by", "shown", "answers", "out"]
    if not arguments.experiment:
        if not arguments.protocol:
            fix = "give --experiment for two runs, or --protocol for two folders of partials"
            raise SisError("nobody said how these were judged", fix=fix)
        if arguments.gallery:
            raise SisError("a gallery of two folders needs their pictures", fix="use python -m evaluators compare")
        given = _given(arguments, "protocol", "reference", *options)
        return _evaluators("compare", [arguments.a, arguments.b, *given])
    plan, dataset = _plan(arguments)
    runs = [plan.spec(dataset, name) for name in (arguments.a, arguments.b)]
    told = [*(_measured(plan, spec) for spec in runs), *_judged(plan, runs[0])]
    if arguments.gallery:
        pictures = [plan.images(dataset, spec.run_id) for spec in runs]
        told += ["--images", *pictures, *_pairs(plan, runs[0])]
    return _evaluators("compare", [*told, *_given(arguments, *options)])


def _gallery(arguments: argparse.Namespace) -> int:
    plan, dataset = _plan(arguments)
    spec = plan.spec(dataset, arguments.run_name)
    told = [plan.images(dataset, spec.run_id), "--partials", _measured(plan, spec), *_judged(plan, spec)]
    given = _given(arguments, "metric", "worst", "best", "answers", "out")
    return _evaluators("gallery", [*told, *_pairs(plan, spec), *given])


def _plan(arguments: argparse.Namespace) -> tuple[Plan, str]:
    from sis.plan import load_plan

    chosen = {"artefacts": arguments.artefacts} if arguments.artefacts else None
    plan = load_plan(chosen, experiment=arguments.experiment)
    known = list(plan.experiment.datasets)
    if not arguments.dataset and len(known) > 1:
        named = f"experiment {plan.experiment.name} has {len(known)} datasets"
        raise SisError(named, fix=f"give --dataset: {first_of(known)}")
    dataset = arguments.dataset or known[0]
    if dataset not in known:
        missing = f"experiment {plan.experiment.name} has no dataset {dataset!r}"
        raise SisError(missing, fix=did_you_mean(dataset, known))
    return plan, dataset


def _measured(plan: Plan, spec: RunSpec) -> str:
    """The partials of a run. Raises SisError with the command that makes them."""
    found = plan.partials(spec.dataset.name, spec.run_id, spec.protocol.name)
    if not Path(found).is_file():
        fix = f"snakemake --profile workflow/profiles/local {found}"
        raise SisError(f"run {spec.name} is not measured yet", where=spec.dataset.name, fix=fix)
    return found


def _judged(plan: Plan, spec: RunSpec) -> list[str]:
    """How it was judged: the protocol, and the reference where it was measured."""
    reference = plan.reference(spec.dataset.name, spec.protocol.name)
    known = ["--reference", reference] if Path(reference).is_file() else []
    return ["--protocol", spec.protocol.name, *known]


def _pairs(plan: Plan, spec: RunSpec) -> list[str]:
    """The label maps, and the segmenter where one is trained here, for pictures of what it sees."""
    pairs = ["--pairs", plan.pairs(spec.dataset.name, spec.protocol.split)]
    judge = plan.judge(spec.protocol.name)
    return [*pairs, *(["--segmenter", plan.segmenter(judge)] if judge else []), "--weights", plan.settings.weights]


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """The options among these that somebody gave, as they are spelled."""
    found: list[str] = []
    for name in names:
        value = getattr(arguments, name)
        if value:
            values = value if isinstance(value, list) else [] if value is True else [value]
            found += [f"--{name}", *map(str, values)]
    return found


def _evaluators(command: str, told: list[str]) -> int:
    """Run the evaluators, which answer on this terminal; returns their exit code."""
    return subprocess.run([sys.executable, "-m", "evaluators", command, *told], check=False).returncode
