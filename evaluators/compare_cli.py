# SPDX-License-Identifier: Apache-2.0
"""`python -m evaluators compare | gallery | per-image`: what measured image sets say beside their scores."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sis.errors import SisError

if TYPE_CHECKING:
    from evaluators.compare import Comparison, Row
    from evaluators.gallery import Answer, Valued
    from evaluators.score import Measured
    from sis.config.protocols import Entry, ProtocolCard

_Commands = argparse._SubParsersAction


def register(commands: _Commands) -> None:
    """Add the commands to those of `python -m evaluators`."""
    _compare_command(commands)
    _gallery_command(commands)
    text = "write what metrics say of single images as one table"
    single = _command(commands, "per-image", _per_image, text)
    single.add_argument("partials", type=_folder, metavar="PARTIALS", help="partials of the image set")
    _reference_argument(single)
    single.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="metrics (default: all that can)")
    single.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write (.parquet)")


def _compare_command(commands: _Commands) -> None:
    compare = _command(commands, "compare", _compare, "compare two measured image sets on the same label maps")
    compare.add_argument("a", type=_folder, metavar="A", help="partials of the one image set")
    compare.add_argument("b", type=_folder, metavar="B", help="partials of the other")
    _reference_argument(compare)
    compare.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="metrics (default: the protocol's)")
    compare.add_argument("--classes", action="store_true", help="every class, too")
    text = "bootstrap replicates (default: the protocol's); more of them resolve smaller p-values"
    compare.add_argument("--replicates", type=_count, metavar="N", help=text)
    compare.add_argument("--out", type=Path, metavar="DIR", help="write comparison.json and comparison.parquet there")
    drawn = compare.add_argument_group("gallery of the largest wins and losses")
    drawn.add_argument("--gallery", type=Path, metavar="FILE", help="page (.html) or sheet (.png) to write")
    drawn.add_argument("--images", type=_folder, nargs=2, metavar="DIR", help="image sets of A and of B")
    drawn.add_argument("--pairs", type=_folder, metavar="DIR", help="pairs with their label maps")
    drawn.add_argument("--by", default="", metavar="NAME", help="metric that chooses (default: the first that can)")
    drawn.add_argument("--shown", type=_count, default=8, metavar="K", help="wins and losses (default: %(default)s)")
    _answer_arguments(drawn)


def _gallery_command(commands: _Commands) -> None:
    gallery = _command(commands, "gallery", _gallery, "draw the worst and the best images of a set")
    gallery.add_argument("images", type=_folder, metavar="IMAGES", help="image set")
    gallery.add_argument("--pairs", type=_folder, required=True, metavar="DIR", help="pairs with its label maps")
    gallery.add_argument("--partials", type=_folder, required=True, metavar="DIR", help="its partials")
    _reference_argument(gallery)
    gallery.add_argument("--metric", default="", metavar="NAME", help="metric that chooses (default: the first)")
    gallery.add_argument("--worst", type=int, default=8, metavar="K", help="how many of the worst (%(default)s)")
    gallery.add_argument("--best", type=int, default=8, metavar="K", help="how many of the best (%(default)s)")
    gallery.add_argument("--out", type=Path, required=True, metavar="FILE", help="page (.html) or sheet (.png)")
    _answer_arguments(gallery)


def _command(
    commands: _Commands, name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument("--protocol", required=True, metavar="NAME|FILE", help="a card of config/protocols")
    parser.add_argument("--threads", type=_count, default=1, metavar="N", help="CPU threads (%(default)s)")
    return parser


def _reference_argument(parser: argparse.ArgumentParser) -> None:
    text = "partials of the reference, for metrics that need one"
    parser.add_argument("--reference", type=_folder, metavar="DIR", help=text)


def _answer_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--answers", action="store_true", help="show what the protocol's segmenter sees, too")
    text = "the segmenter, if it is trained here (.safetensors)"
    parser.add_argument("--segmenter", type=Path, metavar="FILE", help=text)
    text = "folder of external weights (%(default)s)"
    parser.add_argument("--weights", type=Path, default=Path("weights"), metavar="DIR", help=text)
    text = "what may lie there (config/weights.yaml of the project)"
    parser.add_argument("--weights-list", type=Path, metavar="FILE", help=text)


def _folder(text: str) -> Path:
    """A folder artefact may be named by its manifest, as the workflow does."""
    path = Path(text)
    return path.parent if path.name == "manifest.json" else path


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number from 1 on, found {text!r}")
    return int(text)


def _card(arguments: argparse.Namespace) -> ProtocolCard:
    from sis.config.files import named
    from sis.config.protocols import ProtocolCard

    return named("protocols", arguments.protocol, ProtocolCard)


def _compare(arguments: argparse.Namespace) -> None:
    from evaluators.compare import compare, write_comparison

    card = _card(arguments)
    if arguments.gallery and not (arguments.images and arguments.pairs):
        raise SisError("a gallery needs the pictures", fix="give --images A B and --pairs")
    if arguments.replicates:
        bootstrap = card.bootstrap.model_copy(update={"replicates": arguments.replicates})
        card = card.model_copy(update={"bootstrap": bootstrap})
    found = compare(arguments.a, arguments.b, card, arguments.reference, arguments.metrics, arguments.classes)
    sys.stdout.write(spelled(found))
    if arguments.out:
        for path in write_comparison(found, arguments.out):
            sys.stdout.write(f"wrote {path}\n")
    if arguments.gallery:
        _draw_pair(arguments, card)


def _draw_pair(arguments: argparse.Namespace, card: ProtocolCard) -> None:
    from evaluators.gallery import open_judged, pair_gallery, write_gallery
    from evaluators.score import Measured

    sides = [Measured.open(folder, "images") for folder in (arguments.a, arguments.b)]
    entry = _chooser(card, arguments.by, across=True)
    one, two = (_valued(entry, measured, None, whole_maps=True) for measured in sides)
    opened = [open_judged(i, arguments.pairs, m.facts) for i, m in zip(arguments.images, sides, strict=True)]
    (ours, pairs), (theirs, _) = opened
    gallery = pair_gallery((ours, theirs), pairs, (one, two), arguments.shown, _answer(arguments, entry, sides))
    write_gallery(gallery, arguments.gallery)
    sys.stdout.write(f"wrote {arguments.gallery}\n")


def _gallery(arguments: argparse.Namespace) -> None:
    from evaluators.gallery import open_judged, set_gallery, write_gallery
    from evaluators.score import Measured

    if min(arguments.worst, arguments.best) < 0 or arguments.worst + arguments.best == 0:
        raise SisError("a gallery shows one image or more", fix="raise --worst or --best")
    card, measured = _card(arguments), Measured.open(arguments.partials, "images")
    real = Measured.open(arguments.reference, "reference") if arguments.reference else None
    entry = _chooser(card, arguments.metric, across=False)
    valued = _valued(entry, measured, real)
    images, pairs = open_judged(arguments.images, arguments.pairs, measured.facts)
    answer = _answer(arguments, entry, [measured])
    write_gallery(set_gallery(images, pairs, valued, arguments.worst, arguments.best, answer), arguments.out)
    sys.stdout.write(f"wrote {arguments.out}\n")


def _per_image(arguments: argparse.Namespace) -> None:
    from evaluators.compare import chosen
    from evaluators.discovery import find_metric
    from evaluators.per_image import has_per_image, table_of, write_tables
    from evaluators.score import Measured

    card, measured = _card(arguments), Measured.open(arguments.partials, "images")
    real = Measured.open(arguments.reference, "reference") if arguments.reference else None
    entries = [e for e in chosen(card, arguments.metrics) if has_per_image(find_metric(e.stem))]
    found = [t for t in (table_of(entry, measured, real) for entry in entries) if t is not None]
    if not found:
        raise SisError("no metric says anything of single images here", where=arguments.partials)
    facts = {"protocol": card.name, "run": measured.meta["run"], "run_id": measured.meta["run_id"]}
    write_tables(found, arguments.out, facts)
    sys.stdout.write(f"wrote {arguments.out}\n")


def _chooser(card: ProtocolCard, name: str, across: bool) -> Entry:
    """The metric that chooses images: the one asked for, or the first that says something of single images."""
    from evaluators.compare import chosen
    from evaluators.discovery import find_metric
    from evaluators.per_image import comparable, has_per_image

    able = comparable if across else has_per_image
    entries = chosen(card, [name] if name else [])
    found = [e for e in entries if able(find_metric(e.stem))]
    if not found:
        what = "compares single images of two sets" if across else "says anything of single images"
        known = ", ".join(e.stem for e in card.entries() if able(find_metric(e.stem))) or "none"
        raise SisError(f"{name or 'no metric of this protocol'} {'never ' * bool(name)}{what}", fix=f"choose: {known}")
    return found[0]


def _valued(entry: Entry, measured: Measured, real: Measured | None, whole_maps: bool = False) -> Valued:
    """The values of single images, or their means over label maps."""
    from evaluators.discovery import find_metric
    from evaluators.gallery import Valued
    from evaluators.per_image import meaning, name_of, of_maps, values_of

    metric = find_metric(entry.stem)
    found = values_of(entry, measured, real)
    if found is None:
        raise SisError(f"too few samples a label map for {entry.stem}", where=measured.folder)
    rows, values = found
    if whole_maps:
        keys, values = [(m, -1) for m in rows.maps], of_maps(rows, values)
    else:
        samples = [-1] * len(rows) if metric.module.NEEDS == "groups" else rows.sample_indices.tolist()
        keys = list(zip(rows.image_ids, samples, strict=True))
    name = name_of(entry, measured.facts)
    return Valued(keys, values, name, metric.module.UNIT, metric.module.DIRECTION, meaning(metric))


def _answer(arguments: argparse.Namespace, entry: Entry, sides: Sequence[Measured]) -> Answer | None:
    """What the segmenter that judged sees, if it was asked for. Raises SisError for another one than that."""
    if not arguments.answers:
        return None
    from evaluators.networks import Asked, Networks, segmenter_of
    from evaluators.weights import WeightStore
    from sis.config.files import project_root
    from sis.config.judges import SegmenterCard

    found = segmenter_of(entry.card)
    asked = Asked("trained" if isinstance(found, SegmenterCard) else "published", found)
    listed = arguments.weights_list or project_root() / "config" / "weights.yaml"
    networks = Networks(arguments.segmenter, WeightStore.open(arguments.weights, listed))
    record, _ = networks.record(asked, sides[0].labels)
    if any(measured.facts.networks.get(asked.key, record) != record for measured in sides):
        raise SisError("this segmenter is not the one that judged", fix="give the segmenter of the partials")
    run, (height, width) = networks.load(asked, sides[0].labels), sides[0].facts.size
    return lambda images: run(images, (height, width))[0]


def spelled(found: Comparison) -> str:
    """A comparison as people read it on a terminal."""
    from evaluators.compare import families

    lines = [
        f"A  {found.a.title} ({found.a.run_id})",
        f"B  {found.b.title} ({found.b.run_id})",
        f"{found.title}: {found.label_maps:,} label maps, {found.replicates:,} paired bootstrap replicates",
        *(["A and B hold the same images"] if found.a.images_sha256 == found.b.images_sha256 else []),
    ]
    for rows in families(found.rows):
        tested = sum(row.p_value is not None for row in rows)
        what = (("class", "classes") if rows[0].class_name else ("metric", "metrics"))[tested != 1]
        lines += ["", f"p (Holm): corrected for {tested} {what}; verdicts where it is below {found.level:g}"]
        lines += _table(rows, f"{rows[0].metric} ({rows[0].unit})" if rows[0].class_name else "metric")
        if tested * 2 / (found.replicates + 1) >= found.level:
            needed = math.ceil(2 * tested / found.level)
            text = f"{found.replicates} replicates can show no difference among {tested}: give --replicates {needed}"
            lines.append(text)
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], head: str) -> list[str]:
    table = [[head, "A", "B", "A - B", "95 % interval", "p", "p (Holm)", "wins", "verdict"]]
    justified = [_digits(row) for row in rows]
    for row, own in zip(rows, justified, strict=True):
        name = row.class_name or f"{row.metric}{f' ({row.unit})' if row.unit else ''}"
        digits = sorted(justified)[len(rows) // 2] if row.class_name else own
        values = [_number(v, digits) for v in (row.a, row.b)]
        gap = _number(row.difference, digits, "+")
        bounds = "" if row.low is None else f"{_number(row.low, digits, '+')} .. {_number(row.high, digits, '+')}"
        ps = ["" if p is None else f"{p:.4f}" for p in (row.p_value, row.p_holm)]
        wins = "" if row.win_rate is None else f"{100 * row.win_rate:.0f} %"
        verdict = row.verdict + (f": {row.note}" if row.note else "")
        table.append([name, *values, gap, bounds, *ps, wins, verdict])
    kept = [i for i, cells in enumerate(zip(*table, strict=True)) if any(cells[1:])]
    widths = [max(len(cells[i]) for cells in table) for i in kept]
    last = len(kept) - 1
    return [
        "  ".join(
            cells[i] if n == last else cells[i].rjust(w) if n else cells[i].ljust(w)
            for n, (i, w) in enumerate(zip(kept, widths, strict=True))
        ).rstrip()
        for cells in table
    ]


def _digits(row: Row) -> int:
    """Decimals that the interval justifies (two digits of its half width); without one, four digits of the values."""
    if row.low is not None and row.high is not None and row.high > row.low:
        return min(max(1 - math.floor(math.log10((row.high - row.low) / 2)), 0), 6)
    sizes = [abs(v) for v in (row.a, row.b) if v]
    return min(max(3 - math.floor(math.log10(min(sizes))), 0), 6) if sizes else 1


def _number(value: float | None, digits: int, sign: str = "") -> str:
    if value is None:
        return ""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text
