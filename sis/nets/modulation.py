# SPDX-License-Identifier: Apache-2.0
"""Scales and shifts of SPADE norms for one batch of label maps: computed once, kept within a budget of memory.

They depend on neither the noisy image nor the time step, so a chain of any length needs them once. Each norm gets the
form that the budget allows: full maps; a table with one row for each distinct 5x5 neighbourhood of the label map, which
two 3x3 convolutions cannot see beyond; or no store at all, computed anew in every pass. All forms give the same bits:
what else is in the batch, and with it the form, cannot change an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sis.errors import SisError
from sis.nets.neighbourhoods import neighbourhoods
from sis.nets.spade import SPADE, resized

Form = Literal["dense", "table", "recompute"]
_INDEX_BYTES = 4
_SMALL = 32 * 32  # pixels up to which a null map is kept whole: one operation instead of three


@dataclass(frozen=True)
class Cost:
    """What one norm's maps cost: bytes in full, bytes as a table (None for no table), multiplications saved a pass."""

    level: tuple[int, int]
    dense: int
    table: int | None
    index: int
    saving: int


def plan(costs: Sequence[Cost], budget: int | None) -> list[Form]:
    """The form of each norm's maps within a budget in bytes; None is no limit.

    First every norm in its smaller form, the largest saving a byte first, while the budget lasts; what is left then
    turns tables into full maps, which need no look-up, first where that costs the fewest bytes for its size. The index
    of a level is charged to its first table.
    """
    if budget is None:
        return ["dense"] * len(costs)
    if budget < 0:
        raise SisError(f"the memory budget is {budget} bytes", fix="use 0 or more")
    forms: list[Form] = ["recompute"] * len(costs)
    indexed: set[tuple[int, int]] = set()

    def smaller(cost: Cost) -> tuple[int, Form]:
        if cost.table is None:
            return cost.dense, "dense"
        tabled = cost.table + (0 if cost.level in indexed else cost.index)
        return (tabled, "table") if tabled < cost.dense else (cost.dense, "dense")

    for i in sorted(range(len(costs)), key=lambda i: -costs[i].saving / smaller(costs[i])[0]):
        size, form = smaller(costs[i])
        if size <= budget:
            budget, forms[i] = budget - size, form
            if form == "table":
                indexed.add(costs[i].level)
    tables = [i for i, form in enumerate(forms) if form == "table"]
    for i in sorted(tables, key=lambda i: -(costs[i].table or 0) / costs[i].dense):
        more = costs[i].dense - (costs[i].table or 0)
        if more <= budget:
            budget, forms[i] = budget - more, "dense"
    return forms


@dataclass(frozen=True)
class Dense:
    """Full maps `(b or 1, c, h, w)`."""

    gain: Tensor
    shift: Tensor

    def maps(self) -> tuple[Tensor, Tensor]:
        return self.gain, self.shift

    @property
    def bytes(self) -> int:
        return self.gain.nbytes + self.shift.nbytes


@dataclass(frozen=True)
class Table:
    """Rows `(n, c)` and every pixel's row number, int32 `(b, h, w)`, shared by all tables of a level."""

    gain: Tensor
    shift: Tensor
    index: Tensor

    def maps(self) -> tuple[Tensor, Tensor]:
        """Full maps `(b, c, h, w)`, channels last in memory."""
        gain, shift = (F.embedding(self.index, rows).permute(0, 3, 1, 2) for rows in (self.gain, self.shift))
        return gain, shift

    @property
    def bytes(self) -> int:
        return self.gain.nbytes + self.shift.nbytes


@dataclass(frozen=True)
class Recomputed:
    """Nothing kept but the label map at the norm's size, `(b, k, h, w)`."""

    spade: SPADE
    label: Tensor
    dtype: torch.dtype

    def maps(self) -> tuple[Tensor, Tensor]:
        return computed(self.spade, self.label, self.dtype)

    @property
    def bytes(self) -> int:
        return 0


class LabelMaps:
    """The modulations of all SPADE norms of a network under one batch of label maps."""

    def __init__(
        self,
        norms: Sequence[tuple[SPADE, tuple[int, int]]],
        label: Tensor,
        budget: int | None = None,
        dtype: torch.dtype = torch.float32,
        alike: bool = False,
    ) -> None:
        """Compute and keep.

        Args:
            norms: as `SDMUNet.spade_norms` gives them.
            label: condition `(b, k, H, W)`; the maps have its layout in memory.
            budget: bytes for all maps together, None for no limit; the label map itself and the maps of one norm, while
                they are computed, come on top.
            dtype: of the kept maps; half types are computed in it too.
            alike: all images of the batch have the same label map, so the first one's maps are kept for all.
        """
        levels = {size: resized(label, size) for size in dict.fromkeys(size for _, size in norms)}
        images = 1 if alike else len(label)
        dense = sum(2 * spade.channels * images * h * w * dtype.itemsize for spade, (h, w) in norms)
        short = budget is not None and dense > budget
        distinct = {size: neighbourhoods(level) for size, level in levels.items()} if short else {}
        costs = [_cost(spade, levels[size], images, distinct.get(size), dtype.itemsize) for spade, size in norms]
        self.forms: dict[SPADE, Dense | Table | Recomputed] = {}
        indices = {size: index.to(torch.int32) for size, (index, _) in distinct.items()}
        for (spade, size), form in zip(norms, plan(costs, budget), strict=True):
            self.forms[spade] = Recomputed(spade, levels[size], dtype)
            if form == "recompute":
                continue
            gain, shift = computed(spade, levels[size], dtype)
            if form == "table":
                table = Table(_rows(gain, distinct[size][1]), _rows(shift, distinct[size][1]), indices[size])
                # A convolution that sums in another order at another place would show here.
                if all(torch.equal(a, b) for a, b in zip(table.maps(), (gain, shift), strict=True)):
                    self.forms[spade] = table
            else:
                self.forms[spade] = Dense(gain[:1].clone(), shift[:1].clone()) if alike else Dense(gain, shift)

    def of(self, spade: SPADE) -> tuple[Tensor, Tensor]:
        """Scale and shift `(b, c, h, w)` of one norm."""
        return self.forms[spade].maps()

    @property
    def bytes(self) -> int:
        """Memory that the kept maps hold."""
        indices = {id(f.index): f.index.nbytes for f in self.forms.values() if isinstance(f, Table)}
        return sum(form.bytes for form in self.forms.values()) + sum(indices.values())


def _cost(spade: SPADE, label: Tensor, images: int, distinct: tuple[Tensor, Tensor] | None, itemsize: int) -> Cost:
    b, k, h, w = label.shape
    return Cost(
        level=(h, w),
        dense=2 * spade.channels * images * h * w * itemsize,
        table=None if distinct is None else 2 * spade.channels * len(distinct[1]) * itemsize,
        index=_INDEX_BYTES * b * h * w,
        saving=9 * b * h * w * spade.hidden_channels * (k + 2 * spade.channels),
    )


def multiplying_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Convolutions and matrix products in this type; nothing changes for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _rows(maps: Tensor, first: Tensor) -> Tensor:
    """Columns of maps `(b, c, h, w)` at pixels counted through `(b, h, w)`: `(n, c)`."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)[first]


def computed(spade: SPADE, label: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and shift of a label map `(b, k, h, w)` in a type; half types multiply in it as well."""
    with multiplying_in(dtype, label.device):
        gain, shift = spade.modulation(label)
    return gain.to(dtype), shift.to(dtype)


class NullMaps:
    """The modulations under the null condition: nine values a channel, because zero maps differ at the border only.

    The hidden activation of a zero map is the same at every pixel, so after the second convolution's zero padding a
    map holds one value inside, and others in its outermost ring: corners, edges, interior.
    """

    def __init__(self, norms: Sequence[tuple[SPADE, tuple[int, int]]], label: Tensor, dtype: torch.dtype) -> None:
        """Compute; `label` gives the number of channels, the device and the layout in memory."""
        self.bands: dict[SPADE, list[tuple[slice, Tensor, Tensor]]] = {}
        for spade, (h, w) in norms:
            zeros = label.new_zeros(1, label.shape[1], min(h, 3), min(w, 3))
            gain, shift = (_stretched(values, 3, w) for values in computed(spade, zeros, dtype))
            if h * w <= _SMALL or h < 3:
                self.bands[spade] = [(slice(None), _stretched(gain, 2, h), _stretched(shift, 2, h))]
                continue
            rows = (slice(0, 1), slice(1, h - 1), slice(h - 1, h))
            self.bands[spade] = [(at, gain[:, :, i : i + 1], shift[:, :, i : i + 1]) for i, at in enumerate(rows)]

    def of(self, spade: SPADE) -> list[tuple[slice, Tensor, Tensor]]:
        """Bands of rows, each with scale and shift `(1, c, 1 or rows, w)`: one band for small maps, else three."""
        return self.bands[spade]


def _stretched(values: Tensor, axis: int, length: int) -> Tensor:
    """First, inner and last of up to three values, the inner one repeated to a length."""
    if length <= 3:
        return values
    places = torch.ones(length, dtype=torch.int64, device=values.device)
    places[0], places[-1] = 0, 2
    return values.index_select(axis, places)
