# SPDX-License-Identifier: Apache-2.0
"""The judge that is trained on part of a split: which pairs, at which size, and that the part is in its name."""

from __future__ import annotations

from pathlib import Path

import own_pairs  # pyright: ignore[reportMissingImports]
import pytest

from evaluators.segmenters import scenes_unet
from sis.config.files import named
from sis.config.judges import SegmenterCard
from sis.config.protocols import ProtocolCard
from sis.data.pairs import PairSet
from sis.data.prepare import prepare

CARD = named("protocols", "scenes-tiny", ProtocolCard).segmenter.model_copy(update={"steps": 2, "batch_size": 4})


def trained(pairs: Path, out: Path, monkeypatch: pytest.MonkeyPatch, images: int | None) -> list[int]:
    """Train a judge and return the positions of the pairs that it read."""
    read: list[int] = []
    honest = PairSet.get
    monkeypatch.setattr(PairSet, "get", lambda self, index: (read.append(index), honest(self, index))[1])
    scenes_unet.train(PairSet.open(pairs), CARD.model_copy(update={"images": images}), out)
    return read


@pytest.mark.parametrize(
    ("images", "positions"),
    [(4, [6, 18, 30, 42]), (1, [24]), (48, list(range(48))), (1000, list(range(48))), (None, list(range(48)))],
)
def test_the_judge_reads_evenly_spaced_pairs(
    tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int | None, positions: list[int]
) -> None:
    assert trained(tiny_pairs / "train", tmp_path / "judge.safetensors", monkeypatch, images) == positions


def test_a_judge_of_part_of_the_pairs_is_another_judge(
    tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for images in (None, 48, 8):
        out = tmp_path / f"{images}.safetensors"
        trained(tiny_pairs / "train", out, monkeypatch, images)
        monkeypatch.undo()
        made[images] = out.read_bytes()
        assert scenes_unet.load(out).net.head.out_channels == 10
    assert made[None] == made[48] != made[8]


def test_pairs_stored_larger_are_seen_at_the_datasets_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(own_pairs.card(), "train", own_pairs.write(tmp_path / "raw"), tmp_path / "train")
    pairs = PairSet.open(tmp_path / "train")
    assert pairs.stored(0).label.shape != pairs.size == (16, 16)
    assert trained(tmp_path / "train", tmp_path / "judge.safetensors", monkeypatch, 2) == [2, 6]


def test_no_pairs_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        SegmenterCard.model_validate({**CARD.model_dump(), "images": 0})
