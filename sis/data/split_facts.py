# SPDX-License-Identifier: Apache-2.0
"""What a split holds, counted in one pass: ids, sizes, colour modes, labels; and what two splits share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sis.data.labels import LabelSpace
from sis.errors import first_of

#: (width, height) in pixels.
Extent = tuple[int, int]


def _histogram() -> NDArray[np.int64]:
    return np.zeros(256, np.int64)


#: What to do about a pair in two splits.
OVERLAP_FIX = "a pair belongs to one split only; what the official files share goes under `known_overlap:`"


@dataclass
class SplitFacts:
    """One split: `ids` are those listed, everything else counts the pairs that were read.

    pixels, images: int64 `(256,)`, label pixels of each id and label maps with that id; photographs: hash of a raw
    photograph's pixels to the ids that have it; references: ids of style references, with how often they are named.
    """

    split: str
    expected: int
    ids: list[str] = field(default_factory=list)
    sizes: Counter[Extent] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    photographs: dict[str, list[str]] = field(default_factory=dict)
    references: Counter[str] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=_histogram)
    images: NDArray[np.int64] = field(default_factory=_histogram)

    @property
    def read(self) -> int:
        """Number of pairs that were read."""
        return sum(self.sizes.values())

    def add(self, image_id: str, size: Extent, mode: str, sha256: str, reference_id: str = "") -> None:
        """Count one pair; `mode` and `sha256` of its raw photograph are empty where none was published."""
        if reference_id:
            self.references[reference_id] += 1
        self.sizes[size] += 1
        self.modes[mode] += 1
        if sha256:
            self.photographs.setdefault(sha256, []).append(image_id)

    def shares(self) -> NDArray[np.float64]:
        """The part 0..1 of all label pixels, unlabelled ones included, that each id has; float64 `(256,)`."""
        return self.pixels / max(1, int(self.pixels.sum()))

    def unlabelled(self, space: LabelSpace) -> float:
        """The part 0..1 of label pixels that has no class."""
        return 0.0 if space.void is None else float(self.shares()[space.void])

    def extents(self) -> tuple[Extent, Extent, Extent] | None:
        """The smallest, the median and the largest size by area; None when nothing was read."""
        if not self.sizes:
            return None
        ordered = sorted(self.sizes, key=lambda e: (e[0] * e[1], e))
        middle, before = (self.read + 1) // 2, 0
        for extent in ordered:
            before += self.sizes[extent]
            if before >= middle:
                return ordered[0], extent, ordered[-1]
        return None

    def shown_extents(self) -> str:
        """`extents` as words, e.g. `256x300 / 512x683 / 2048x1024` (width x height)."""
        extents = self.extents()
        if extents is None:
            return "-"
        words = [f"{width}x{height}" for width, height in extents]
        return words[0] if len(set(words)) == 1 else " / ".join(words)

    def shown_modes(self) -> str:
        """Pillow's modes of the raw photographs with their numbers, most frequent first, e.g. `RGB x97, L x3`."""
        ordered = sorted(self.modes.items(), key=lambda m: (-m[1], m[0]))
        return ", ".join(f"{mode or 'no photograph'} x{count:,}" for mode, count in ordered) or "-"

    def repeated(self) -> int:
        """Photographs that this split holds more than once."""
        return sum(len(ids) > 1 for ids in self.photographs.values())


@dataclass(frozen=True)
class Shared:
    """What two splits share: ids, and photographs as `id = id`."""

    first: str
    second: str
    ids: list[str]
    photographs: list[str]

    def lines(self) -> list[str]:
        """One sentence for ids, one for photographs, as far as there are any."""
        both = f"in both {self.first} and {self.second}"
        ids = f"{_number(self.ids, 'id')} {both}: {first_of(self.ids)}"
        photographs = f"{_number(self.photographs, 'photograph')} {both}: {first_of(self.photographs)}"
        return [line for line, names in ((ids, self.ids), (photographs, self.photographs)) if names]


def shared(splits: list[SplitFacts]) -> list[Shared]:
    """Every two splits that have an id, or the pixels of a raw photograph, in common."""
    found = []
    for a, b in combinations(splits, 2):
        ids = sorted(set(a.ids) & set(b.ids))
        same = sorted((a.photographs[h][0], b.photographs[h][0]) for h in a.photographs.keys() & b.photographs.keys())
        if ids or same:
            found.append(Shared(a.split, b.split, ids, [f"{x} = {y}" for x, y in same]))
    return found


def unexcused(overlaps: list[Shared], known: list[str]) -> list[Shared]:
    """The overlaps without the photographs of `known` ids, which the official files themselves hold twice."""
    found = [
        replace(o, photographs=[p for p in o.photographs if not set(p.split(" = ")) & set(known)]) for o in overlaps
    ]
    return [o for o in found if o.ids or o.photographs]


def together(splits: list[SplitFacts]) -> SplitFacts:
    """The label counts of several splits as those of one."""
    whole = SplitFacts("all", sum(s.expected for s in splits))
    for facts in splits:
        whole.pixels += facts.pixels
        whole.images += facts.images
    return whole


def never_seen(splits: list[SplitFacts], space: LabelSpace) -> list[int]:
    """Classes, dead ids apart, that occur in no split."""
    images = together(splits).images
    return [c.id for c in space.classes if not c.dead and not images[c.id]]


def dead_but_seen(splits: list[SplitFacts], space: LabelSpace) -> list[int]:
    """Ids that no official label map holds, but one of these does."""
    images = together(splits).images
    return [c.id for c in space.classes if c.dead and images[c.id]]


def named_ids(ids: list[int], space: LabelSpace, limit: int = 20) -> str:
    """How many ids, and the first of them with their names, e.g. `2 of 182 (11 street sign, 25 hat)`; or `none`."""
    names = first_of([f"{i} {space.classes[i].name}" for i in ids], limit)
    return f"{len(ids)} of {space.count} ({names})" if ids else "none"


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the numbers 0..count-1, or all, from the middles of equal intervals."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _number(names: list[str], word: str) -> str:
    return f"{len(names):,} {word}{'s' if len(names) != 1 else ''}"
