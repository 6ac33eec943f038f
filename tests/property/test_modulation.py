# SPDX-License-Identifier: Apache-2.0
"""Stored modulations of SPADE: exact in every form, at every size, borders included, and within their budget."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sis.nets.modulation import Cost, Dense, LabelMaps, NullMaps, Table, plan
from sis.nets.neighbourhoods import neighbourhoods
from sis.nets.spade import SPADE

SIDES = st.integers(1, 12)


@st.composite
def label_maps(draw: st.DrawFn) -> Tensor:
    """One-hot maps of few regions, a channel of edges and now and then a column of zeros, or any numbers at all."""
    batch, names, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(SIDES), draw(SIDES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    coarse = torch.randint(0, names, (batch, height // 3 + 1, width // 3 + 1), generator=generator)
    ids = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width]
    label = F.one_hot(ids, names).permute(0, 3, 1, 2).float()
    if draw(st.booleans()):
        label = label * (torch.rand(batch, 1, height, width, generator=generator) > 0.1)
    if draw(st.booleans()):
        label = label * torch.tensor([0.5, 1.0, -2.0])[ids % 3][:, None]
    return label


def spade(channels: int, label_channels: int) -> SPADE:
    """A norm with random weights."""
    module, generator = SPADE(channels, label_channels, 16), torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return module.requires_grad_(False)


@given(label_maps())
def test_pixels_share_a_number_exactly_where_they_see_the_same(label: Tensor) -> None:
    index, first = neighbourhoods(label)
    b, _, h, w = label.shape
    inside = F.pad(torch.ones(b, 1, h, w), (2,) * 4)
    seen = torch.cat([F.pad(label, (2,) * 4), inside], dim=1)  # the border is not a label of zeros
    patches = seen.unfold(2, 5, 1).unfold(3, 5, 1).permute(0, 2, 3, 1, 4, 5).reshape(b * h * w, -1)
    same = (patches[:, None] == patches[None]).all(-1)
    assert torch.equal(same, index.flatten()[:, None] == index.flatten()[None])
    assert torch.equal(index.flatten()[first], torch.arange(len(first)))


@given(label_maps(), st.floats(0, 1), st.booleans())
def test_every_form_gives_the_same_bits_within_the_budget(label: Tensor, share: float, last: bool) -> None:
    if last:
        label = label.contiguous(memory_format=torch.channels_last)
    k, h, w = label.shape[1:]
    norms = [(spade(c, k), size) for c in (3, 16) for size in ((h, w), (2 * h, 2 * w), ((h + 1) // 2, (w + 1) // 2))]
    whole = LabelMaps(norms, label)
    budget = int(share * whole.bytes)
    limited = LabelMaps(norms, label, budget)
    assert limited.bytes <= budget
    assert all(isinstance(form, Dense) for form in whole.forms.values())
    for module, size in norms:
        plain = module.modulation(F.interpolate(label, size=size, mode="nearest"))
        for stored in (whole, limited):
            assert all(torch.equal(found, exact) for found, exact in zip(stored.of(module), plain, strict=True))


def test_tables_are_used_where_memory_is_short_and_regions_are_large() -> None:
    label = F.one_hot((torch.arange(64) // 32).expand(1, 64, 64), 2).permute(0, 3, 1, 2).float()
    norms = [(spade(32, 2), (64, 64))]
    full = LabelMaps(norms, label)
    short = LabelMaps(norms, label, full.bytes // 10)
    (table,) = short.forms.values()
    assert isinstance(table, Table)
    assert len(table.gain) == 5 * 10, "rows: two at each end and those between; columns: so too, and four at the border"
    assert short.bytes == table.bytes + table.index.nbytes < full.bytes // 10


def test_maps_of_equal_images_are_kept_once() -> None:
    label = torch.zeros(4, 5, 8, 8)
    norms = [(spade(16, 5), (8, 8))]
    once, each = LabelMaps(norms, label, alike=True), LabelMaps(norms, label)
    assert 4 * once.bytes == each.bytes
    for one, many in zip(once.of(norms[0][0]), each.of(norms[0][0]), strict=True):
        assert torch.equal(one.expand_as(many), many)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 20))
def test_null_maps_are_exact_at_every_size(height: int, width: int, labels: int) -> None:
    module = spade(6, labels)
    found = NullMaps([(module, (height, width))], torch.zeros(1, labels, 1, 1), torch.float32)
    exact = module.modulation(torch.zeros(1, labels, height, width))
    maps = [torch.full_like(exact[0], torch.nan), torch.full_like(exact[0], torch.nan)]
    for rows, gain, shift in found.of(module):
        maps[0][:, :, rows], maps[1][:, :, rows] = gain, shift
    for one, two in zip(maps, exact, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, *ts in found.of(module) for t in ts}
    assert sum(kept.values()) <= 2 * 4 * 6 * max(32 * 32, 3 * width, 2 * width)


COSTS = st.lists(
    st.builds(
        Cost,
        level=st.tuples(st.integers(1, 3), st.just(1)),
        dense=st.integers(1, 1000),
        table=st.none() | st.integers(1, 1500),
        index=st.integers(1, 50),
        saving=st.integers(1, 1000),
    ),
    max_size=8,
)


@given(COSTS, st.integers(0, 4000))
def test_a_plan_keeps_to_its_budget_and_keeps_everything_that_fits(costs: list[Cost], budget: int) -> None:
    forms = plan(costs, budget)
    tabled = {cost.level: cost.index for cost, form in zip(costs, forms, strict=True) if form == "table"}
    spent = sum({"dense": c.dense, "table": c.table or 0, "recompute": 0}[f] for c, f in zip(costs, forms, strict=True))
    assert spent + sum(tabled.values()) <= budget
    assert all(cost.table is not None for cost, form in zip(costs, forms, strict=True) if form == "table")
    if sum(cost.dense for cost in costs) + sum(cost.index for cost in costs) <= budget:
        assert forms == ["dense"] * len(costs)
    if "recompute" in forms:
        left = budget - spent - sum(cost.index for cost in costs)
        assert all(
            min(c.dense, c.table or c.dense) > left for c, f in zip(costs, forms, strict=True) if f == "recompute"
        )


def test_the_largest_saving_a_byte_comes_first() -> None:
    costs = [Cost((8, 8), 100, None, 1, saving) for saving in (10, 30, 20)]
    assert plan(costs, 200) == ["recompute", "dense", "dense"]
    assert plan(costs, 199) == ["recompute", "dense", "recompute"]
    assert plan(costs, None) == ["dense"] * 3


def test_memory_that_is_left_turns_tables_into_maps() -> None:
    costs = [Cost((8, 8), 100, 20, 4, 10), Cost((8, 8), 100, 60, 4, 10)]
    assert plan(costs, 84) == ["table", "table"]
    assert plan(costs, 124) == ["table", "dense"]
    assert plan(costs, 204) == ["dense", "dense"]
