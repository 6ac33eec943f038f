# SPDX-License-Identifier: Apache-2.0
"""Verification of raw data: everything that `prepare` would refuse and more, found without writing anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sis.config.cards import DatasetCard
from sis.data.labels import LabelSpace
from sis.data.layouts import Entry, layout_module
from sis.data.pairs import label_histogram
from sis.data.parallel import ordered_map, worthwhile
from sis.data.prepare import Preparer, checked_entries
from sis.data.split_facts import (
    OVERLAP_FIX,
    Extent,
    Shared,
    SplitFacts,
    dead_but_seen,
    named_ids,
    never_seen,
    shared,
    spread,
    together,
    unexcused,
)
from sis.errors import SisError
from sis.progress import Progress

#: Pairs of each split that a quick check reads.
QUICK = 64
#: Faulty files of one kind that are spelled out.
EXAMPLES = 5
_FREQUENT, _BAR = 12, 40


@dataclass(frozen=True)
class Look:
    """What was seen of one raw pair, or why it is unfit; labels: int64 `(256,)` histogram."""

    image_id: str
    size: Extent = (0, 0)
    mode: str = ""
    sha256: str = ""
    labels: NDArray[np.int64] | None = None
    fault: SisError | None = None


class Inspector:
    """Looks at the raw pairs of one split; travels to worker processes."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.preparer = Preparer(card, split)

    def __call__(self, entry: Entry) -> Look:
        """Read, check and resize one pair as `prepare` does; a fault is part of the answer."""
        preparer = self.preparer
        try:
            pair = preparer.raw(entry)
            preparer.stored(pair)
        except (SisError, OSError) as error:
            where = f"{preparer.card.name}/{preparer.split}, image {entry.image_id}"
            fault = error if isinstance(error, SisError) else SisError(f"cannot be read: {error}", where=where)
            return Look(entry.image_id, fault=fault)
        height, width = pair.label.shape
        origin = pair.origin
        return Look(
            entry.image_id,
            (origin.width, origin.height) if origin else (width, height),
            origin.mode if origin and pair.photograph is not None else "",
            origin.sha256 if origin and pair.photograph is not None else "",
            label_histogram(pair),
        )


@dataclass
class Faults:
    """All faults of one kind: how many, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What a check found."""

    card: DatasetCard
    space: LabelSpace
    root: Path
    quick: bool
    splits: list[SplitFacts] = field(default_factory=list)
    faults: dict[str, Faults] = field(default_factory=dict)
    overlaps: list[Shared] = field(default_factory=list)

    def add_fault(self, error: SisError) -> None:
        """Count a fault under its kind: its first words without numbers and names."""
        kind = re.sub(r"'[^']*'|\d[\d,.x]*", "#", error.what.split(": ")[0])
        faults = self.faults.setdefault(kind, Faults())
        faults.count += 1
        if len(faults.examples) < EXAMPLES:
            faults.examples.append(str(error))

    @property
    def faulty(self) -> int:
        """Number of all faults."""
        return sum(f.count for f in self.faults.values())

    def refuse(self) -> None:
        """Raise SisError when there is any fault."""
        if self.faulty:
            kinds = f" of {len(self.faults)} kinds" if len(self.faults) > 1 else ""
            plural = "s" if self.faulty > 1 else ""
            first = next(iter(self.faults.values())).examples[0]
            raise SisError(f"{self.card.name} is unfit, {self.faulty:,} fault{plural}{kinds}, the first: {first}")

    def text(self) -> str:
        """The whole report as aligned lines."""
        card = self.card
        height, width = card.size
        how = f"{height}x{width} (height x width), policy {card.prepare.policy}, fidelity {card.prepare.fidelity}"
        lines = [f"{card.name}: {card.shown}; {how}"]
        if self.quick:
            lines.append(f"quick: all names, but pixels of at most {QUICK} pairs a split")
        lines += ["", *_split_table(self.splits), "", *_label_lines(self.splits, self.space)]
        lines += [f"overlap: {line}" for both in self.overlaps for line in both.lines()]
        repeated = [f"{s.repeated()} in {s.split}" for s in self.splits if s.repeated()]
        if repeated:
            lines.append(f"photographs that their split holds twice or more: {', '.join(repeated)}")
        for kind, faults in self.faults.items():
            lines += ["", f"{faults.count:,} x {kind}", *(f"  {example}" for example in faults.examples)]
            if faults.count > len(faults.examples):
                lines.append(f"  and {faults.count - len(faults.examples):,} more")
        if not self.faults:
            found = "nothing wrong in what was read" if self.quick else "can be prepared"
            lines += ["", f"ok  {card.name}: {found}"]
        return "\n".join(lines)


def check_raw(card: DatasetCard, root: Path, workers: int = 1, quick: bool = False) -> Report:
    """Read the raw files of every split and collect what is wrong with them; nothing is written.

    Args:
        root: the dataset's own folder of raw files.
        workers: processes that read.
        quick: look into a few pairs of each split only; names, pairing and counts are checked of all.

    Raises SisError when there is no such folder, and for cards that name an unknown layout, policy or label table.
    """
    if card.layout != "scenes" and not root.is_dir():
        fix = "put them there (docs/datasets.md), or name their folder under `roots:` in config/config.yaml"
        raise SisError(f"no folder with the raw files of {card.name}", where=root, fix=fix)
    inspectors = {split: Inspector(card, split) for split in card.splits}
    report = Report(card, inspectors["train"].preparer.space, root, quick)
    for split, inspector in inspectors.items():
        facts = SplitFacts(split, card.splits[split].count)
        report.splits.append(facts)
        _inspect(report, facts, inspector, _entries(report, split), workers)
    report.overlaps = shared(report.splits)
    if card.prepare.fidelity != "release":
        for line in (line for both in unexcused(report.overlaps, card.known_overlap) for line in both.lines()):
            report.add_fault(SisError(line, where=card.name, fix=OVERLAP_FIX))
    return report


def _entries(report: Report, split: str) -> list[Entry]:
    """The entries of a split; a wrong name or number is a fault, but the files are looked at all the same."""
    card, root = report.card, report.root
    try:
        return checked_entries(card, split, root)
    except SisError as error:
        report.add_fault(error)
    try:
        return list(layout_module(card).entries(card, split, root))
    except SisError:
        return []


def _inspect(report: Report, facts: SplitFacts, inspector: Inspector, entries: list[Entry], workers: int) -> None:
    facts.ids = [e.image_id for e in entries]
    chosen = [entries[i] for i in spread(len(entries), QUICK)] if report.quick else entries
    looks = ordered_map(inspector, chosen, worthwhile(workers, len(chosen)), preload=__name__)
    with Progress(f"check {report.card.name}/{facts.split}", len(chosen), "images") as progress:
        for look in looks:
            progress.update(1)
            if look.fault is not None or look.labels is None:
                report.add_fault(look.fault or SisError("nothing was read", where=look.image_id))
                continue
            facts.add(look.image_id, look.size, look.mode, look.sha256)
            facts.pixels += look.labels
            facts.images += look.labels > 0


def _split_table(splits: list[SplitFacts]) -> list[str]:
    rows = [("split", "pairs", "expected", "read", "smallest / median / largest", "modes")]
    for s in splits:
        numbers = (f"{len(s.ids):,}", f"{s.expected:,}", f"{s.read:,}")
        rows.append((s.split, *numbers, s.shown_extents(), s.shown_modes()))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(r[:5], widths, strict=True)), r[5]]).rstrip() for r in rows]


def _label_lines(splits: list[SplitFacts], space: LabelSpace) -> list[str]:
    """Unlabelled share, classes that never occur, dead ids that do, and the most frequent classes with bars."""
    read = [s for s in splits if s.read]
    if not read:
        return ["no label map could be read"]
    void = ", ".join(f"{s.split} {s.unlabelled(space):.1%}" for s in read)
    lines = [f"unlabelled: {void}" if space.void is not None else "unlabelled: every pixel has a class"]
    unseen, dead = never_seen(read, space), dead_but_seen(read, space)
    lines.append(f"classes that never occur: {named_ids(unseen, space, limit=8)}")
    if any(c.dead for c in space.classes):
        lines.append(f"dead ids that do occur: {named_ids(dead, space)}")
    total = together(read).shares()
    frequent = sorted((c for c in space.classes if total[c.id]), key=lambda c: (-total[c.id], c.id))[:_FREQUENT]
    longest = max((len(c.name) for c in frequent), default=0)
    lines.append(f"most frequent of {space.count} classes, share of all label pixels:")
    for c in frequent:
        bar = "#" * max(1, round(_BAR * total[c.id] / total[frequent[0].id]))
        lines.append(f"  {c.id:3} {c.name.ljust(longest)} {total[c.id]:6.1%} {bar}")
    return lines
