# SPDX-License-Identifier: Apache-2.0
"""Layout of files by patterns: Cityscapes, ADE20K, COCO-Stuff, landscapes, and anyone's own folders.

A split's patterns stand in the card; without any they mean `<split>/images/{id}.*`, `<split>/labels/{id}.png` and,
where the card says `instances: file`, `<split>/instances/{id}.png`. Files belong together by name, never by order.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path

from sis.config.cards import DatasetCard
from sis.config.files import label_space, project_root
from sis.data.images import pixel_sha256
from sis.data.labels import LabelSpace
from sis.data.layouts import Entry, checked_options
from sis.data.pair import Origin, Pair
from sis.data.patterns import file_below, matches
from sis.data.raw import read_instance, read_label, read_photograph
from sis.errors import SisError, first_of

Files = dict[str, Path]

_PLURAL = {"photograph": "photographs", "label": "label maps", "instance": "instance maps"}


def entries(card: DatasetCard, split: str, root: Path) -> list[Entry]:
    """The pairs of a split, sorted by id, none of them opened.

    Raises SisError for missing folders, files without their partner (counted, the first five named), links that
    leave the root, and references that do not give each label map one training photograph.
    """
    checked_options(card, {})
    facts = card.splits[split]
    files = {"label": matches(root, facts.label or f"{split}/labels/{{id}}.png")}
    if facts.photographs:
        files["photograph"] = _photographs(card, split, root)
    if card.files.instances == "file":
        files["instance"] = matches(root, facts.instance or f"{split}/instances/{{id}}.png")
    _refuse_unpaired(files, f"{card.name}/{split}")
    references = _references(card, split, root, files["label"]) if facts.references else {}
    every = files["label"]
    return [Entry(i, split, {kind: found[i] for kind, found in files.items()}, references.get(i, "")) for i in every]


def read(card: DatasetCard, entry: Entry) -> Pair:
    """One pair at its raw size. Raises SisError naming the file that is unfit."""
    path, photo, origin, instance = entry.files.get("photograph"), None, None, None
    if path is not None:
        photo, mode = read_photograph(path, card.files.exif)
        origin = Origin(photo.shape[1], photo.shape[0], mode, pixel_sha256(photo))
    values = read_label(entry.files["label"], card.files.palette)
    label = label_table(card).from_file(values, where=entry.files["label"])
    if "instance" in entry.files:
        instance = read_instance(entry.files["instance"], card.files.instance_bits)
    return Pair(entry.image_id, photo, label, instance, entry.reference_id, origin)


def label_table(card: DatasetCard) -> LabelSpace:
    """The card's label table; one that has a file of its own is loaded once, not for every pair."""
    return _loaded(card.labels, project_root()) if isinstance(card.labels, str) else card.labels


@lru_cache(maxsize=8)
def _loaded(name: str, project: Path) -> LabelSpace:
    return label_space(name)


def _photographs(card: DatasetCard, split: str, root: Path) -> Files:
    return matches(root, card.splits[split].image or f"{split}/images/{{id}}.*")


def _refuse_unpaired(files: dict[str, Files], where: str) -> None:
    """Raise SisError unless every kind of file has the same ids."""
    faults = []
    for kind, others in [("photograph", ["label"]), ("label", ["photograph", "instance"]), ("instance", ["label"])]:
        for other in others:
            if kind in files and other in files and (alone := [i for i in files[kind] if i not in files[other]]):
                faults.append(f"{len(alone):,} {_PLURAL[kind]} without {_PLURAL[other]}: {first_of(alone)}")
    if faults:
        raise SisError("; ".join(faults), where=where, fix="files of a pair need the same id")


def _references(card: DatasetCard, split: str, root: Path, labels: Files) -> dict[str, str]:
    """The id of each label map's reference photograph, from a JSON file of file names."""
    path = file_below(root, card.splits[split].references)
    named = _string_pairs(path)
    strange = [n for pair in named.items() for n in pair if "/" in n or "\\" in n or n in (".", "..")]
    _refuse(strange, "names that lead out of their folder", path, "give file names without folders")
    by_mask = {file.name: image_id for image_id, file in labels.items()}
    by_photograph = {file.name: image_id for image_id, file in _photographs(card, "train", root).items()}
    _refuse(sorted(set(by_mask) - set(named)), "label maps without a reference", path, "add them")
    _refuse(sorted(set(named) - set(by_mask)), f"references of no label map in {split}", path, "remove them")
    missing = sorted({n for n in named.values() if n not in by_photograph})
    _refuse(missing, "references that are no training photographs", path, "check the split train")
    return {by_mask[mask]: by_photograph[photograph] for mask, photograph in named.items()}


def _string_pairs(path: Path) -> dict[str, str]:
    """A JSON object of strings. Raises SisError for anything else, and for a key that stands twice."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise SisError(f"not a readable JSON file: {error}", where=path) from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise SisError("the file must map the name of each label map to one photograph's", where=path)
    _refuse(twice, "keys that stand twice", path, "keep one of each")
    return found


def _refuse(names: list[str], what: str, where: object, fix: str) -> None:
    if names:
        raise SisError(f"{len(names):,} {what}: {first_of(names)}", where=where, fix=fix)
