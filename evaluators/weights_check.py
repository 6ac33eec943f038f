# SPDX-License-Identifier: Apache-2.0
"""Checks of weight files from end to end: hash, safe reading, does it fit its network; and their conversion."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluators.weights import Fit, Found, WeightCard, WeightStore
from evaluators.weights_bytes import is_there, silent, size_of, unreadable
from evaluators.weights_converted import converted_path, write_converted
from evaluators.weights_pins import PINS
from sis.errors import SisError, did_you_mean


@dataclass(frozen=True)
class State:
    """Where one listed file stands.

    state: missing, present, pinned, unverified (no hash to compare with) or wrong; fault: what is wrong, in a line;
    tensors: number of named weights and fit: what they fit, both from `check_files` only.
    """

    card: WeightCard
    state: str
    found: Found | None = None
    fault: str = ""
    tensors: int = 0
    fit: str = ""


def states(store: WeightStore, advance: Callable[[int], None] = silent) -> Iterator[State]:
    """Every listed file with the hash of those that are there; a wrong one is a state, not an error."""
    for card in store.cards:
        try:
            found = store.look(card.name, advance)
        except SisError as error:
            yield State(card, "wrong", fault=str(error))
        else:
            yield State(card, found.state if found else "missing", found)


def check_files(store: WeightStore, advance: Callable[[int], None] = silent) -> Iterator[State]:
    """As `states`, and every file that is there is also read safely and loaded into the network that it must fit."""
    for state in states(store, advance):
        if state.found is None:
            yield state
            continue
        try:
            yield State(state.card, state.state, state.found, "", *_read(store, state.found, advance))
        except SisError as error:
            yield State(state.card, "wrong", state.found, str(error))


def bytes_to_read(store: WeightStore) -> int:
    """Size of all listed files that are there, converted ones included; what cannot be looked at counts nothing."""
    total = 0
    for card in store.cards:
        for path in (store.folder / card.file, converted_path(store.folder / card.file)):
            try:
                total += size_of(path) if is_there(path) else 0
            except SisError:
                continue
    return total


def strangers(store: WeightStore) -> list[str]:
    """One line for each file in the folder that nothing will read: not listed, or under a name that is not ours."""
    ours = {c.file for c in store.cards} | {converted_path(Path(c.file)).name for c in store.cards} | {PINS}
    try:
        names = sorted(p.name for p in store.folder.iterdir()) if store.folder.is_dir() else []
    except OSError as error:
        raise unreadable(error, store.folder) from error
    return [f"{name}: {_guess(store, name)}" for name in names if name not in ours]


def convert(store: WeightStore, name: str, advance: Callable[[int], None] = silent) -> Path:
    """Write the safetensors form of the file called `name` beside it; returns its path.

    Its metadata records the source's sha256, and `WeightStore.look` takes it from then on. Nothing in the source is
    run. Raises SisError for a file that is missing, wrong, safetensors already, or anything but named weights.
    """
    from sis.data.weight_files import read_weights

    card = store.card(name)
    source = store.folder / card.file
    if source.suffix == ".safetensors":
        raise SisError(f"{card.file} is a safetensors file already", where=source, fix="use it as it is")
    if not is_there(source):
        raise SisError(f"nothing to convert - {store.advice(name)}")
    digest = store.digest(card, advance)
    weights = read_weights(source)
    _unchanged(weights.sha256, digest, source)
    out = converted_path(source)
    is_there(out)  # refuses a folder in its place
    write_converted(weights, out)
    return out


def _read(store: WeightStore, found: Found, advance: Callable[[int], None]) -> tuple[int, str]:
    """Number of weights in a file and the network that it fits. Raises SisError for a file that is of no use."""
    from sis.data.weight_files import read_weights

    original = store.folder / found.card.file
    if found.converted and is_there(original):
        _unchanged(found.sha256, store.digest(found.card, advance), original)
    weights = read_weights(found.path)
    if not found.converted:
        _unchanged(weights.sha256, found.sha256, found.path)
    count = len(weights.tensors)
    del weights
    return count, _fitted(store, found.card, found.card.fits) if found.card.fits else "any network"


def _unchanged(first: str, second: str, path: Path) -> None:
    if first != second:
        raise SisError("the file changed while it was read", where=path, fix="run the command again")


def _fitted(store: WeightStore, card: WeightCard, fit: Fit) -> str:
    """Load a file, with the others that belong to it, into its network; says which, or why not yet."""
    from evaluators.network import Source

    folder, _, stem = fit.network.partition("/")
    if folder == "lpips":
        from evaluators.lpips_backbone import lpips_backbone

        lpips_backbone(stem, store)
        return f"fits {fit.network}"
    module = f"evaluators.{folder}.{stem}"
    if importlib.util.find_spec(module) is None:
        return f"{fit.network} is not part of this release"
    files = [store.look(name) for name in fit.files or [card.name]]
    missing = [name for name, found in zip(fit.files, files, strict=False) if found is None]
    if missing:
        return f"fit not tried, {', '.join(missing)} is missing"
    paths = [found.path for found in files if found is not None]
    importlib.import_module(module).load(fit.options, Source(paths))
    return f"fits {fit.network}"


def _guess(store: WeightStore, name: str) -> str:
    """What a file that is not listed may be."""
    if ".tmp-" in name and name.startswith("."):
        return "of a conversion that runs now, or was killed; then delete it"
    meant = [c.file for c in store.cards if c.published_as == name]
    if meant:
        return f"not read under this name; rename it to {' or '.join(meant)}"
    near = did_you_mean(name, [c.file for c in store.cards])
    return f"not listed; {near}" if near.startswith("did you mean") else "not listed"
