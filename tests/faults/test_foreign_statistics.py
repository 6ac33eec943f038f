# SPDX-License-Identifier: Apache-2.0
"""Partials of another extractor, another resize or another judge are never scored together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluators.measure import Networks, measure_images, measure_reference
from evaluators.score import score
from evaluators.weights import WeightStore
from sis.config.files import named
from sis.config.protocols import ProtocolCard
from sis.data.image_set import pixel_hashes
from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.sampling.ingest import Import, export_pictures, import_folder

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {"dims": 64, "resize": "pytorch-fid"}
OTHERS: dict[str, dict[str, Any]] = {
    "another layer": {"dims": 192, "resize": "pytorch-fid"},
    "another resize": {"dims": 64, "resize": "clean"},
}


def card(options: dict[str, Any]) -> ProtocolCard:
    """FID alone, by features of Inception under some options."""
    whole = named("protocols", "scenes-tiny", ProtocolCard).model_dump(mode="json")
    facts = {"segmenter": None, "metrics": ["fid"], "features": {"options": options}}
    facts["reference"] = {"split": "val", "count": 4}
    return ProtocolCard.model_validate({**whole, **facts})


@pytest.fixture(scope="module")
def measured(tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Partials of images and of the reference under every choice of options, in folders called after them."""
    folder = tmp_path_factory.mktemp("measured")
    networks = Networks(None, WeightStore.open(folder / "weights", ROOT / "config/weights.yaml"))
    export_pictures(tiny_pairs / "val", folder / "pictures")
    job = Import(folder / "pictures", tiny_pairs / "val", folder / "set", "mine", "mine", "Mine", "mine")
    import_folder(job)
    assert len(pixel_hashes(folder / "set")) == len(PairSet.open(tiny_pairs / "val"))
    measure_images(folder / "set", tiny_pairs / "val", card(BASE), networks, folder / "images")
    for name, options in {"base": BASE, **OTHERS}.items():
        measure_reference(tiny_pairs / "val", card(options), networks, folder / name)
    return folder


def test_partials_of_one_protocol_are_scored(measured: Path, tmp_path: Path) -> None:
    table = score(measured / "images", measured / "base", card(BASE), tmp_path / "scores.parquet")
    assert table.num_rows == 1 and table["value"][0].as_py() > 0


@pytest.mark.parametrize("other", OTHERS)
def test_a_reference_of_another_extractor_is_refused(measured: Path, tmp_path: Path, other: str) -> None:
    with pytest.raises(SisError, match=r"measured under another protocol .*run measure again"):
        score(measured / "images", measured / other, card(BASE), tmp_path / "scores.parquet")
    with pytest.raises(SisError, match=r"measured under another protocol .*run measure again"):
        score(measured / "images", measured / other, card(OTHERS[other]), tmp_path / "scores.parquet")
    assert not list(tmp_path.iterdir())


def test_partials_of_images_are_no_reference(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(SisError, match="these are partials of images, expected reference"):
        score(measured / "images", measured / "images", card(BASE), tmp_path / "scores.parquet")
    assert not list(tmp_path.iterdir())
