# SPDX-License-Identifier: Apache-2.0
"""Laws of merging partials and of comparing scores (of measuring them: test_scores_measured.py)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_sets import (
    CARD,
    CLASSES,
    LABELS,
    ROOT,
    SIZE,
    correlated,
    write_reference,
    write_set,
)

from evaluators.compare import Row, compare
from evaluators.discovery import find_metric, stems
from evaluators.lpips_backbone import lpips_backbone
from evaluators.metric import Batch, Judge
from evaluators.partial import Partial, content_sha256
from evaluators.score import score
from evaluators.weights import WeightStore

MAPPED = [s for s in stems("metrics") if hasattr(find_metric(s).module, "map")]


@functools.cache
def parts_of(stem: str) -> Sequence[Partial]:
    """Rows of made-up images, a part for each of six label maps."""
    module, rng = find_metric(stem).module, np.random.default_rng(0)
    count, backbone = module.samples(CARD), None
    if hasattr(module, "BACKBONE"):
        backbone = lpips_backbone("alex", WeightStore.open("nowhere", ROOT / "config" / "weights.yaml"))
    judge = Judge(CARD, LABELS, backbone)
    found = []
    for i in range(6):
        pictures = rng.integers(0, 256, (2, count, *SIZE, 3)).astype(np.uint8)
        ids = rng.integers(0, CLASSES, (2, count, *SIZE)).astype(np.uint8)
        features = rng.dirichlet(np.ones(10), count).astype(np.float32)
        batch = Batch([f"map-{i}"] * count, list(range(count)), pictures[0], ids[0], ids[1], features, pictures[1])
        found.append(module.map(batch, judge))
    return found


@pytest.mark.parametrize("stem", MAPPED)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_merging_is_associative_and_commutative_for_every_metric(stem: str, data: st.DataObject) -> None:
    merge, parts = find_metric(stem).merge, parts_of(stem)
    whole = content_sha256(merge(parts))
    order = data.draw(st.permutations(parts))
    while len(order) > 1:  # any tree of merges
        at = data.draw(st.integers(0, len(order) - 2))
        many = data.draw(st.integers(2, len(order) - at))
        order[at : at + many] = [merge(order[at : at + many])]
    assert content_sha256(order[0]) == whole


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def rows_of(a: Path, b: Path, reference: Path) -> dict[tuple[str, str], Row]:
    return {(r.metric, r.class_name): r for r in compare(a, b, CARD, reference, classes=True).rows}


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10_000), gap=st.floats(-0.1, 0.1))
def test_a_set_equals_itself_and_swapping_two_turns_every_difference(seed: int, gap: float) -> None:
    with scratch() as root:
        one, two = correlated(12, seed, gap)
        a, b = write_set(root / "a", one, seed), write_set(root / "b", two, seed + 1)
        real = write_reference(root / "reference")
        own, there, back = rows_of(a, a, real), rows_of(a, b, real), rows_of(b, a, real)
    for row in own.values():
        assert row.difference in (0, None) and row.p_value in (1, None) and row.low in (0, None)
        assert row.verdict in ("no difference shown", "no interval", "undefined")
        assert row.wins in (0, None) and row.win_rate in (0.5, None)
    turned = {"A better": "B better", "B better": "A better"}
    for key, row in there.items():
        other = back[key]
        assert (other.a, other.b, other.wins, other.losses) == (row.b, row.a, row.losses, row.wins)
        assert (other.p_value, other.p_holm) == (row.p_value, row.p_holm)
        assert other.verdict == turned.get(row.verdict, row.verdict)
        if row.difference is not None:
            assert other.difference == -row.difference
        if row.low is not None and row.high is not None:
            assert (other.low, other.high) == pytest.approx((-row.high, -row.low), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_where_label_maps_are_hard_for_both_the_paired_interval_is_narrower(seed: int) -> None:
    """Narrower than that of a difference of independent values, whose half widths add up in squares."""
    with scratch() as root:
        one, two = correlated(30, seed, 0.02, spread=0.3)
        a, b = write_set(root / "a", one, seed), write_set(root / "b", two, seed + 1)
        real = write_reference(root / "reference")
        found = compare(a, b, CARD, real, ["accuracy", "lpips"]).rows
        tables = [score(x, real, CARD, x / "scores.parquet").to_pylist() for x in (a, b)]
    for row in found:
        widths = [
            r["high"] - r["low"] for t in tables for r in t if r["metric"] == row.metric and r["class_name"] == ""
        ]
        assert row.low is not None and row.high is not None
        assert row.high - row.low < 0.8 * np.hypot(*widths)
