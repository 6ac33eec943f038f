# SPDX-License-Identifier: Apache-2.0
"""The card of a prepared dataset: what its splits hold, as Markdown, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, label_space
from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.labels import LabelSpace
from sis.data.manifest import Manifest, read_manifest, stable_hash
from sis.data.pair_sheet import draw_pairs
from sis.data.pairs import PairSet
from sis.data.schemas import DATASET_CARD, PAIRS
from sis.data.split_facts import (
    OVERLAP_FIX,
    Shared,
    SplitFacts,
    dead_but_seen,
    named_ids,
    never_seen,
    shared,
    unexcused,
)
from sis.data.tables import read_table, write_table
from sis.errors import SisError, first_of

_COLUMNS = ["image_id", "source_width", "source_height", "source_mode", "source_sha256", "reference_id"]
_MADE_WITH = ("pillow", "numpy", "pyarrow")


@dataclass(frozen=True)
class Prepared:
    """A dataset's card with all its prepared splits, in the card's order."""

    card: DatasetCard
    space: LabelSpace
    manifests: list[Manifest]
    facts: list[SplitFacts]
    overlaps: list[Shared]


def write_dataset_card(pairs: Sequence[Path], out: Path, card: DatasetCard | None = None) -> Path:
    """Write pairs.png, card.parquet and, last, card.md of prepared splits to `out`; returns card.md.

    Args:
        pairs: every split of one dataset (folder or manifest); their shards are opened, but not hashed again.
        card: the dataset's card; None: the one that the splits name.

    Raises SisError: no, missing, repeated or mixed splits, splits of another version of the card, other counts than it
    expects, style references that are no training photographs, and splits that share an id or the pixels of a raw
    photograph, unless the card says `fidelity: release`.
    """
    manifests = [read_manifest(path, "pairs", verify=False) for path in pairs]
    if not manifests:
        raise SisError("no prepared splits were named", fix="name the manifest of every split of one dataset")
    card = card or dataset_card(manifests[0].meta["dataset"])
    space = label_space(card.labels)
    ordered = _in_order(card, manifests)
    _refuse_other_cards(card, space, ordered)
    facts = [_facts(m, card.splits[m.meta["split"]].count) for m in ordered]
    overlaps = shared(facts)
    refused = [] if card.prepare.fidelity == "release" else unexcused(overlaps, card.known_overlap)
    if refused:
        lines = "; ".join(line for both in refused for line in both.lines())
        raise SisError(f"splits overlap: {lines}", where=card.name, fix=OVERLAP_FIX)
    prepared = Prepared(card, space, ordered, facts, overlaps)
    _refuse_strange_references(facts)
    with suppress(OSError):  # an older card must not speak of newer files; the writers below say what is wrong
        (out / "card.md").unlink(missing_ok=True)
    write_bytes_atomic(out / "pairs.png", draw_pairs(card.shown, [PairSet(m) for m in ordered]))
    write_table(_table(prepared), out / "card.parquet", DATASET_CARD, _metadata(prepared))
    write_text_atomic(out / "card.md", _markdown(prepared))
    return out / "card.md"


def _in_order(card: DatasetCard, manifests: Sequence[Manifest]) -> list[Manifest]:
    names = sorted({m.meta["dataset"] for m in manifests})
    if names != [card.name]:
        raise SisError(f"splits of {first_of(names)}, expected those of {card.name}", fix="one card a dataset")
    splits = [m.meta["split"] for m in manifests]
    missing = [s for s in card.splits if s not in splits]
    unknown = [s for s in splits if s not in card.splits]
    repeated = sorted({s for s in splits if splits.count(s) > 1})
    for fault, found in (("missing", missing), ("unknown", unknown), ("repeated", repeated)):
        if found:
            fix = "name the manifest of every split once: only then is it known that they do not overlap"
            raise SisError(f"{fault} splits of {card.name}: {first_of(found)}", fix=fix)
    return [next(m for m in manifests if m.meta["split"] == split) for split in card.splits]


def _refuse_other_cards(card: DatasetCard, space: LabelSpace, manifests: Sequence[Manifest]) -> None:
    now = {
        "size": card.size,
        "labels": space.model_dump(),
        "prepare": card.prepare.model_dump(),
        "edges": card.edges,
        "subset": card.subset,
    }
    for manifest in manifests:
        split = card.splits[manifest.meta["split"]]
        expected = now | {"count": split.count, "photographs": split.photographs}
        other = [key for key, value in expected.items() if manifest.meta.get(key) != value]
        if other:
            fault = f"prepared from another version of the card {card.name}: {first_of(other)} differ"
            raise SisError(fault, where=manifest.folder, fix="run prepare again")


def _refuse_strange_references(splits: Sequence[SplitFacts]) -> None:
    known = {image_id for f in splits if f.split == "train" for image_id in f.ids}
    for facts in splits:
        strange = sorted(facts.references.keys() - known)
        if strange:
            fault = f"{len(strange):,} style references that are no ids of train: {first_of(strange)}"
            raise SisError(fault, where=facts.split, fix="run prepare again")


def _facts(manifest: Manifest, expected: int) -> SplitFacts:
    """Count a split by the columns without pictures and by the histogram in its manifest."""
    facts = SplitFacts(manifest.meta["split"], expected)
    for path in manifest.paths():
        columns = read_table(path, PAIRS, _COLUMNS).to_pydict()
        for row in zip(*(columns[name] for name in _COLUMNS), strict=True):
            image_id, width, height, mode, sha256, reference_id = row
            facts.ids.append(image_id)
            facts.add(image_id, (width, height), mode, sha256, reference_id)
    for ids, counts in ((facts.pixels, "label_pixels"), (facts.images, "label_images")):
        for class_id, count in manifest.meta[counts].items():
            ids[int(class_id)] = count
    return facts


def _table(prepared: Prepared) -> pa.Table:
    space, rows = prepared.space, []
    scored = {class_id: number for number, class_id in enumerate(space.evaluated_ids)}
    for facts in prepared.facts:
        shares = facts.shares()
        ids = [(c.id, c.name, scored.get(c.id), c.ignored, c.dead) for c in space.classes]
        if space.void is not None:
            ids.append((space.void, "unlabelled", None, True, False))
        for class_id, *known in ids:
            counts = (int(facts.pixels[class_id]), float(shares[class_id]), int(facts.images[class_id]))
            rows.append((prepared.card.name, facts.split, class_id, *known, *counts))
    columns = zip(*rows, strict=True)
    return pa.table(
        [pa.array(list(c), f.type) for c, f in zip(columns, DATASET_CARD, strict=True)], schema=DATASET_CARD
    )


def _metadata(prepared: Prepared) -> dict:
    card, facts = prepared.card, prepared.facts
    splits = {
        f.split: {
            "pairs": len(f.ids),
            "sizes": f.extents(),
            "modes": dict(sorted(f.modes.items())),
            "repeated_photographs": f.repeated(),
            "key": m.meta["key"],
            "content": _content(m),
            "manifest": m.digest,
        }
        for f, m in zip(facts, prepared.manifests, strict=True)
    }
    return {"dataset": card.name, "subset": card.subset, "size": card.size, "splits": splits}


def _content(manifest: Manifest) -> str:
    """One hash of all shards: equal wherever the same raw data were prepared in the same way."""
    return stable_hash(manifest.files, 64)


def _markdown(prepared: Prepared) -> str:
    card, space = prepared.card, prepared.space
    height, width = card.size
    void = f"void id {space.void}" if space.void is not None else "every pixel has a class"
    rows = [
        ("name", f"`{card.name}`"),
        ("size", f"{height} x {width} (height x width)"),
        ("preparation", f"policy `{card.prepare.policy}`, fidelity `{card.prepare.fidelity}`"),
        ("label table", f"`{space.name}`: {space.count} classes, {len(space.evaluated_ids)} scored, {void}"),
        ("instance edges", "an input of the methods" if card.edges else "none"),
        ("licence", card.licence),
        ("source", card.source),
    ]
    part = f"> **Subset `{card.subset}`**: a part of the dataset, never to be compared with the whole.\n"
    blocks = [
        f"# {card.shown}\n",
        *([part] if card.subset else []),
        *([f"{card.description}\n"] if card.description else []),
        _grid(("", ""), rows),
        _splits(prepared),
        "![Pairs of each split, evenly spaced over their ids](pairs.png)\n",
        _classes(prepared),
        _provenance(prepared),
    ]
    return "\n".join(blocks)


def _splits(prepared: Prepared) -> str:
    rows = []
    for f in prepared.facts:
        void = "-" if prepared.space.void is None else f"{f.unlabelled(prepared.space):.2%}"
        rows.append((f.split, f"{len(f.ids):,}", f"{f.expected:,}", f.shown_extents(), f.shown_modes(), void))
    heads = ("split", "pairs", "expected", "raw sizes: smallest / median / largest", "modes of raw files", "unlabelled")
    lines = [f"- {line}" for both in prepared.overlaps for line in both.lines()]
    words = "Splits overlap, as the card allows:\n" if lines else "No id and no photograph is in two splits."
    notes = [f"- {f.repeated()} photographs occur more than once in {f.split}." for f in prepared.facts if f.repeated()]
    for f in prepared.facts:
        if f.references:
            named = f"{f.references.total():,} label maps of {f.split} name {len(f.references):,} training photographs"
            notes.append(f"- {named} as references of the wanted style.")
    return "\n".join(["## Splits\n", _grid(heads, rows), words, *lines, *(["", *notes] if notes else []), ""])


def _classes(prepared: Prepared) -> str:
    """One row a class: what it is called, how it is scored, its share of the label pixels and its label maps."""
    space, facts = prepared.space, prepared.facts
    scored = {class_id: str(number) for number, class_id in enumerate(space.evaluated_ids)}
    shares = [f.shares() for f in facts]
    ids = [(c.id, c.name + (" (dead)" if c.dead else "")) for c in space.classes]
    ids += [(space.void, "unlabelled")] if space.void is not None else []
    rows = []
    for class_id, name in ids:
        counts = []
        for f, share in zip(facts, shares, strict=True):
            seen = f.images[class_id] > 0
            counts += [f"{share[class_id]:.3%}" if seen else "-", f"{f.images[class_id]:,}" if seen else "-"]
        rows.append((str(class_id), name, scored.get(class_id, "-"), *counts))
    heads = ["id", "class", "scored as", *(head for f in facts for head in (f"{f.split}: pixels", f"{f.split}: maps"))]
    unseen, dead = never_seen(facts, space), dead_but_seen(facts, space)
    return "\n".join(
        [
            "## Classes\n",
            "Share of all stored label pixels, unlabelled ones included, and number of label maps with the class.\n",
            f"- Classes that no split shows: {named_ids(unseen, space)}.",
            *([f"- Dead ids that occur all the same: {named_ids(dead, space)}."] if dead else []),
            "",
            _grid(heads, rows),
        ]
    )


def _provenance(prepared: Prepared) -> str:
    rows, card = [], prepared.card
    for m in prepared.manifests:
        versions = ", ".join(f"{name} {m.run['versions'].get(name, '?')}" for name in _MADE_WITH)
        rows.append((m.meta["split"], f"`{_content(m)}`", f"`{m.digest}`", f"{m.run['commit']}; {versions}"))
    raw = f"Raw files in layout `{card.layout}`; splits by `sis prepare`, this page by `sis data card`.\n"
    words = (
        "The content hash covers the prepared shards: it is equal wherever the same raw files were prepared with\n"
        "these versions. The manifest's own hash covers time and place, too.\n"
    )
    return "\n".join(
        ["## How it was made\n", raw, words, _grid(("split", "content sha256", "manifest sha256", "made with"), rows)]
    )


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return (
        "\n".join("| " + " | ".join(" ".join(c.replace("|", r"\|").split()) for c in row) + " |" for row in lines)
        + "\n"
    )
