# SPDX-License-Identifier: Apache-2.0
"""`weights list`, `weights check` and `weights convert`: what lies in the weights folder and what it is good for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sis.errors import SisError

if TYPE_CHECKING:
    from evaluators.weights import WeightCard, WeightStore
    from evaluators.weights_check import State

Commands = argparse._SubParsersAction
_MB = 1_000_000


def register(commands: Commands) -> None:
    """Add the command `weights` with its actions; each sets `run` and `command` to a function of its arguments."""
    text = "list, check and convert the external weights of the judging networks"
    weights = commands.add_parser("weights", help=text, description=text[0].upper() + text[1:] + ".")
    actions = weights.add_subparsers(title="actions", metavar="ACTION", required=True, help="what to do")

    listing = _action(actions, "list", list_weights, "show every listed file: is it here, its terms, what it feeds")
    shape = listing.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="everything that is known of them, as JSON")
    shape.add_argument("--markdown", action="store_true", help="the tables of docs/weights.md")

    check = _action(actions, "check", check_weights, "read every file that is here; say what to fetch for the others")
    check.add_argument("--pin", action="store_true", help="write the sha256 of what is right into weights/pins.yaml")

    convert = _action(actions, "convert", convert_weights, "write a file as safetensors, which needs no pickle to load")
    convert.add_argument("name", help="a name of config/weights.yaml")


def _action(
    actions: Commands, name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=function, command=function)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights folder (default: by config/config.yaml)")
    parser.add_argument("--weights-list", type=Path, metavar="FILE", help="what may lie there (config/weights.yaml)")
    return parser


def list_weights(arguments: argparse.Namespace) -> None:
    """Print one line a file, or JSON, or the tables of the documentation."""
    from evaluators.weights_check import states

    store = _store(arguments)
    if arguments.markdown:
        sys.stdout.write(markdown(store.cards))
        return
    with _reading(store) as advance:
        found = list(states(store, advance))
    if arguments.json:
        sys.stdout.write(json.dumps([_record(state) for state in found], indent=1, ensure_ascii=False) + "\n")
        return
    rows = [(s.card.name, s.state, _size(s), s.card.licence, _file(s), "; ".join(s.card.columns)) for s in found]
    for line in _aligned([("name", "state", "size", "licence", "file", "feeds"), *rows]):
        sys.stdout.write(line + "\n")
    _write_wrong(found)


def check_weights(arguments: argparse.Namespace) -> None:
    """Print one line a file that is here and one a file to fetch. Raises SisError when any is wrong."""
    from evaluators.weights_check import check_files, strangers

    store = _store(arguments)
    with _reading(store) as advance:
        found = list(check_files(store, advance))
    for state in found:
        if state.state not in ("missing", "wrong"):
            sys.stdout.write(f"{state.state:<10} {state.card.name}: {_verdict(state)}\n")
    for state in found:
        if state.state == "missing":
            sys.stdout.write(f"missing    {store.advice(state.card.name)}\n")
    for line in strangers(store):
        sys.stdout.write(f"unused     {line}\n")
    if arguments.pin:
        _pin(store, found)
    _write_wrong(found)
    wrong = [state.card.name for state in found if state.state == "wrong"]
    if wrong:
        sys.stdout.flush()
        here = sum(state.state != "missing" for state in found)
        raise SisError(f"{len(wrong)} of {here} weight files are wrong: {', '.join(wrong)}", fix="see above")


def convert_weights(arguments: argparse.Namespace) -> None:
    """Convert one file and say where the result lies."""
    from evaluators.weights_check import convert

    store = _store(arguments)
    size = _bytes(store.folder / store.card(arguments.name).file)
    with _progress(f"convert {arguments.name}", size) as advance:
        out = convert(store, arguments.name, advance)
    sys.stdout.write(f"{out}: used in place of {store.card(arguments.name).file} from now on\n")


def markdown(cards: Sequence[WeightCard]) -> str:
    """The two tables of docs/weights.md, in the list's order: where files come from, and their terms."""
    files = []
    for c in cards:
        link = f"[link]({c.url})" if c.url else "your own"
        files.append([f"`{c.name}`", "; ".join(c.columns), f"`{c.file}`", link, c.fetch, str(c.megabytes or "?")])
    terms = [
        [f"`{c.name}`", c.licence, c.terms, f"`{c.sha256_prefix}…`" if c.sha256_prefix else "unverified"] for c in cards
    ]
    first = _table(["name", "not real without it", "save as", "fetch", "how", "MB, about"], files)
    return first + "\n" + _table(["name", "licence", "terms", "published sha256"], terms)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _store(arguments: argparse.Namespace) -> WeightStore:
    from evaluators.weights import WeightStore
    from sis.config.files import project_root, settings

    folder = arguments.weights or Path(settings().weights)
    return WeightStore.open(folder, arguments.weights_list or project_root() / "config" / "weights.yaml")


def _pin(store: WeightStore, found: Sequence[State]) -> None:
    from evaluators.weights_pins import write_pins

    right = {s.card.name: s.found.sha256 for s in found if s.found is not None and s.state != "wrong"}
    if not right:
        raise SisError("nothing to pin: no file is here and right", where=store.folder)
    path = write_pins(store.folder, {**store.pins, **right})
    sys.stdout.write(f"{path}: the sha256 of {len(right)} files\n")


def _write_wrong(found: Sequence[State]) -> None:
    for state in found:
        if state.state == "wrong":
            sys.stdout.write(f"wrong      {state.card.name}: {state.fault}\n")


def _verdict(state: State) -> str:
    assert state.found is not None
    kind = ", converted" if state.found.converted else ""
    return f"{state.found.path.name}{kind}, sha256 {state.found.sha256[:16]}, {state.tensors} weights, {state.fit}"


def _record(state: State) -> dict:
    facts = {"state": state.state, "path": None, "sha256": None, "converted": False, "fault": state.fault}
    if state.found is not None:
        found = state.found
        facts |= {"path": str(found.path), "sha256": found.sha256, "converted": found.converted}
    return {**state.card.model_dump(mode="json"), **facts}


def _file(state: State) -> str:
    return state.found.path.name if state.found else state.card.file


def _size(state: State) -> str:
    if state.found is not None:
        return f"{_bytes(state.found.path) / _MB:,.1f} MB"
    return f"{state.card.megabytes:,} MB" if state.card.megabytes else "?"


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns under each other; the last one runs on."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()


def _reading(store: WeightStore) -> AbstractContextManager[Callable[[int], None]]:
    from evaluators.weights_check import bytes_to_read

    return _progress("weights", bytes_to_read(store))


@contextmanager
def _progress(title: str, size: int) -> Iterator[Callable[[int], None]]:
    """A callback that counts bytes and shows megabytes; nothing is shown below a hundred of them."""
    from evaluators.weights_bytes import silent
    from sis.progress import Progress

    read = 0
    if size < 100 * _MB:
        yield silent
        return
    with Progress(title, size // _MB, "MB") as bar:

        def advance(count: int) -> None:
            nonlocal read
            read += count
            bar.update(min(read // _MB, bar.total) - bar.done)

        yield advance
