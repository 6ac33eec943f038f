# SPDX-License-Identifier: Apache-2.0
"""The command line `sis`: one command a stage, and commands to look, check and start something new.

Heavy modules are imported inside the commands, so that `sis --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sis.cli_checkpoint import add_average_command, add_checkpoint_commands
from sis.cli_cluster import add_cluster_commands
from sis.cli_eval import add_eval_command
from sis.cli_judging import add_judging_commands, handed_over
from sis.cli_latent import add_latent_commands
from sis.cli_pictures import add_picture_commands
from sis.cli_runs import add_run_commands, folder_of
from sis.cli_words import Commands, add_command
from sis.errors import SisError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, or 2 after a refusal printed as one line)."""
    code = 0
    try:
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
        finally:  # also behind `--help`, which leaves by SystemExit
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) went away: nothing is wrong and nobody listens.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(words: list[str]) -> int:
    if (judged := handed_over(words)) is not None:
        return judged
    arguments = build_parser().parse_args(words)
    arguments.words = words
    try:
        return arguments.run(arguments) or 0
    except SisError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, run the same command again", file=sys.stderr)  # noqa: T201
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    parser = argparse.ArgumentParser(
        prog="sis",
        description="sis-bench: benchmark of semantic image synthesis (label map to image).",
        epilog="Stages: prepare, train, prior, sample, evaluate (python -m evaluators), publish. "
        "Whole experiments: snakemake --profile workflow/profiles/local.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _stage_commands(commands)
    _data_commands(commands)
    _artefact_commands(commands)
    add_checkpoint_commands(commands)
    add_average_command(commands)
    add_latent_commands(commands)
    add_picture_commands(commands, _pictures)
    add_eval_command(commands)
    add_cluster_commands(commands)
    add_judging_commands(commands)
    _project_commands(commands)
    return parser


def _stage_commands(commands: Commands) -> None:
    prepare = add_command(commands, "prepare", _prepare, "stage 1: turn raw data into verified pair shards")
    prepare.add_argument("--dataset", required=True, help="name or card of the dataset")
    prepare.add_argument("--split", required=True, help="split of the dataset")
    prepare.add_argument("--root", type=Path, help="the dataset's folder (default: by config/config.yaml)")
    prepare.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    prepare.add_argument("--out", required=True, type=Path, help="folder of the pairs (or its manifest)")

    add_run_commands(commands)

    publish = add_command(
        commands, "publish", _publish, "stage 6: write tables, gallery and leaderboard of an experiment"
    )
    publish.add_argument("--experiment", required=True, help="name or file of the experiment")
    publish.add_argument("--artefacts", default="artefacts", help="root of the artefacts (default: artefacts)")
    publish.add_argument("--out", required=True, type=Path, help="folder of the publication")


def _data_commands(commands: Commands) -> None:
    text = "check raw datasets, describe prepared ones, unpack archives"
    data = commands.add_parser("data", help=text, description=text[0].upper() + text[1:] + ".")
    actions = data.add_subparsers(title="actions", metavar="ACTION", required=True, help="what to do")

    check = add_command(actions, "check", _data_check, "verify the raw files of a dataset without writing anything")
    check.add_argument("dataset", help="name or card of the dataset")
    check.add_argument("--root", type=Path, help="the dataset's folder (default: by config/config.yaml)")
    check.add_argument("--workers", type=int, default=0, help="processes (default: one a core)")
    check.add_argument("--quick", action="store_true", help="all names, but the pixels of a few pairs only")

    card = add_command(actions, "card", _data_card, "describe a prepared dataset: card.md, card.parquet, pairs.png")
    card.add_argument("pairs", nargs="+", type=Path, help="every prepared split of one dataset (folder or manifest)")
    card.add_argument("--dataset", help="name or card of the dataset (default: the name in the splits)")
    card.add_argument("--out", required=True, type=Path, help="folder of the three files")

    unpack = add_command(actions, "unpack", _data_unpack, "unpack official archives, refusing what leaves the folder")
    unpack.add_argument("archives", nargs="+", type=Path, help="zip or tar files")
    unpack.add_argument("--into", required=True, help="a dataset (its folder by config/config.yaml), or ./FOLDER")


def _artefact_commands(commands: Commands) -> None:
    verify = add_command(commands, "verify", _verify, "check every byte of artefacts against their manifests")
    verify.add_argument("paths", nargs="+", type=Path, help="artefacts, or folders full of them")

    export = add_command(commands, "export", _export, "write an image set or pairs as a folder of PNGs")
    export.add_argument("artefact", type=Path, help="image set or pairs")
    export.add_argument("--out", required=True, type=Path, help="new folder")
    what = export.add_mutually_exclusive_group()
    what.add_argument("--labels", action="store_true", help="of pairs: the label maps (stored ids)")
    what.add_argument("--instances", action="store_true", help="of pairs: the instance maps (16 bit)")

    bring = add_command(commands, "import", _import, "make an image set of a folder of PNGs")
    bring.add_argument("folder", type=Path, help="folder with the pictures")
    bring.add_argument("--pairs", required=True, type=Path, help="pairs whose label maps were drawn")
    bring.add_argument("--name", required=True, help="name of the run")
    bring.add_argument("--run-id", default="", help="id of the run in an experiment (default: the name)")
    bring.add_argument("--method", default="", help="name of the method (default: the run's name)")
    bring.add_argument("--title", default="", help="name in tables (default: the run's name)")
    bring.add_argument("--kind", choices=["images", "rule"], default="images", help="how they came (default: images)")
    bring.add_argument("--pattern", default="{image_id}.png", help="file names, with {image_id} and {sample}")
    bring.add_argument("--samples", type=int, default=1, help="images a label map (default: 1)")
    bring.add_argument("--out", required=True, type=Path, help="folder of the image set (or its manifest)")


def _project_commands(commands: Commands) -> None:
    listing = add_command(commands, "list", _list, "list methods, datasets, experiments and protocols")
    listing.add_argument(
        "what", nargs="?", choices=["methods", "datasets", "experiments", "protocols"], help="one kind"
    )

    new = add_command(commands, "new", _new, "write the shortest working example of a plug-in")
    new.add_argument("what", choices=["method", "dataset", "metric"], help="what to add")
    new.add_argument("name", help="its name: lower-case letters, digits, '_'")
    new.add_argument(
        "--kind", choices=["python", "command", "images", "rule"], default="python", help="kind of a method"
    )

    check = add_command(commands, "check", _check, "run the contract tests of one plug-in on the built-in data")
    check.add_argument("name", help="a method, dataset or metric")

    config = add_command(commands, "config", _config, "show schemas and check configuration files")
    config.add_argument("action", choices=["schema", "docs", "check"], help="JSON schemas, Markdown tables, or a check")
    config.add_argument("--out", type=Path, help="schema: folder for one file each (default: print)")


def _prepare(arguments: argparse.Namespace) -> None:
    from sis.config.files import dataset_card, dataset_root, settings
    from sis.data.parallel import available_cores
    from sis.data.prepare import prepare

    card = dataset_card(arguments.dataset)
    root = arguments.root or dataset_root(card, settings())
    prepare(card, arguments.split, root, folder_of(arguments.out), arguments.workers or available_cores())


def _publish(arguments: argparse.Namespace) -> None:
    from sis.publish.experiment import publish_experiment

    publish_experiment(arguments.experiment, arguments.artefacts, arguments.out)


def _data_check(arguments: argparse.Namespace) -> None:
    from sis.config.files import dataset_card, dataset_root, settings
    from sis.data.check import check_raw
    from sis.data.parallel import available_cores

    card = dataset_card(arguments.dataset)
    root = arguments.root or dataset_root(card, settings())
    report = check_raw(card, root, arguments.workers or available_cores(), arguments.quick)
    print(report.text(), flush=True)  # noqa: T201
    report.refuse()


def _data_card(arguments: argparse.Namespace) -> None:
    from sis.config.files import dataset_card
    from sis.data.dataset_card import write_dataset_card

    card = dataset_card(arguments.dataset) if arguments.dataset else None
    print(f"wrote {write_dataset_card(arguments.pairs, arguments.out, card)}")  # noqa: T201


def _data_unpack(arguments: argparse.Namespace) -> None:
    from sis.config.files import dataset_card, dataset_root, settings
    from sis.data.unpack import unpack

    # A bare word is a dataset, so that a misspelt one is no new folder.
    folder = "/" in arguments.into or Path(arguments.into).is_dir()
    root = Path(arguments.into) if folder else dataset_root(dataset_card(arguments.into), settings())
    for archive in arguments.archives:
        print(f"{unpack(archive, root):,} files of {archive} unpacked into {root}")  # noqa: T201


def _verify(arguments: argparse.Namespace) -> None:
    from sis.data.verify import verify_all

    for path, manifest in verify_all(arguments.paths):
        print(f"ok {manifest.artefact:11} {len(manifest.files):4} files  {path}")  # noqa: T201


def _export(arguments: argparse.Namespace) -> None:
    from sis.sampling.ingest import export_pictures

    count = export_pictures(arguments.artefact, arguments.out, arguments.labels, arguments.instances)
    print(f"{count} pictures in {arguments.out}")  # noqa: T201


def _import(arguments: argparse.Namespace) -> None:
    from sis.sampling.ingest import Import, import_folder

    job = Import(
        folder=arguments.folder,
        pairs=arguments.pairs,
        out=folder_of(arguments.out),
        name=arguments.name,
        run_id=arguments.run_id or arguments.name,
        title=arguments.title or arguments.name,
        method=arguments.method or arguments.name,
        kind=arguments.kind,
        pattern=arguments.pattern,
        samples_per_map=arguments.samples,
    )
    import_folder(job)


def _pictures(arguments: argparse.Namespace) -> None:
    for path in arguments.draw(arguments):
        print(f"wrote {path}")  # noqa: T201


def _list(arguments: argparse.Namespace) -> None:
    from sis.project.listing import listing

    print(listing(arguments.what))  # noqa: T201


def _new(arguments: argparse.Namespace) -> None:
    from sis.project.scaffold import scaffold

    for path in scaffold(arguments.what, arguments.name, arguments.kind):
        print(f"wrote {path}")  # noqa: T201


def _check(arguments: argparse.Namespace) -> int:
    from sis.project.check import check

    return check(arguments.name)


def _config(arguments: argparse.Namespace) -> None:
    from sis.config import schema

    if arguments.action == "check":
        print(schema.check_all())  # noqa: T201
    elif arguments.action == "docs":
        print(schema.markdown())  # noqa: T201
    elif arguments.out:
        for path in schema.write_schemas(arguments.out):
            print(f"wrote {path}")  # noqa: T201
    else:
        print(schema.schema_text())  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
