# SPDX-License-Identifier: Apache-2.0
"""Protocol cards and the id of what defines a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluators.definition import called
from evaluators.discovery import find_metric, find_segmenter
from evaluators.networks import asked_by, segmenter_of
from sis.config.judges import SegmenterPreset
from sis.config.protocols import BootstrapCard, NetworkRecord, ProtocolCard, ProtocolRecord, protocol_id
from sis.config.protocols import ReferenceRecord as Reference
from sis.config.strict_yaml import load_model
from sis.errors import SisError

CARDS = sorted((Path(__file__).parents[2] / "config" / "protocols").glob("*.yaml"))

RECORD = ProtocolRecord(
    version=1,
    dataset="scenes",
    split="val",
    pairs_sha256="aa",
    labels_sha256="",
    label_maps=128,
    samples_per_map=1,
    size=[64, 64],
    metric="fd-scenes-segmenter",
    metric_version=1,
    settings={"class_rule": "union"},
    judge={"name": "scenes_unet"},
    networks=[NetworkRecord(name="scenes_unet", sha256="bb")],
    reference=Reference(split="train", pairs_sha256="cc", count=1536),
    bootstrap=BootstrapCard(replicates=400, seed=20),
)

CHANGES: list[dict[str, Any]] = [
    {"version": 2},
    {"dataset": "other"},
    {"split": "train"},
    {"pairs_sha256": "ab"},
    {"label_maps": 127},
    {"samples_per_map": 2},
    {"size": [64, 128]},
    {"metric": "miou"},
    {"metric_version": 2},
    {"settings": {"class_rule": "gt"}},
    {"labels_sha256": "ad"},
    {"judge": {"name": "drn"}},
    {"judge": None},
    {"networks": [NetworkRecord(name="scenes_unet", sha256="b0")]},
    {"networks": [NetworkRecord(name="drn", sha256="bb")]},
    {"networks": [NetworkRecord(name="scenes_unet", sha256="bb", verified=False)]},
    {"networks": []},
    {"reference": Reference(split="val", pairs_sha256="cc", count=1536)},
    {"reference": Reference(split="train", pairs_sha256="c0", count=1536)},
    {"reference": Reference(split="train", pairs_sha256="cc", count=500)},
    {"reference": None},
    {"bootstrap": BootstrapCard(replicates=400, seed=21)},
    {"bootstrap": BootstrapCard(replicates=40, seed=20)},
]


def test_the_id_is_16_hexadecimal_digits_and_stable() -> None:
    assert protocol_id(RECORD) == protocol_id(RECORD.model_copy()) == "273c84d03689297b"


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_any_other_ingredient_gives_another_id(change: dict[str, Any]) -> None:
    assert protocol_id(RECORD.model_copy(update=change)) != protocol_id(RECORD)


def test_every_ingredient_is_tried() -> None:
    assert {key for change in CHANGES for key in change} == set(ProtocolRecord.model_fields)


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.stem)
def test_cards_name_what_exists(path: Path) -> None:
    card = load_model(path, ProtocolCard)
    assert card.name == path.stem
    names = [called(entry) for entry in card.entries()]
    assert len(set(names)) == len(card.metrics)
    for entry in card.entries():
        asked = asked_by(find_metric(find_metric(entry.stem).source), entry.card)
        if asked and asked.kind in ("trained", "published"):
            found = segmenter_of(entry.card)
            find_segmenter(found.network if isinstance(found, SegmenterPreset) else found.name)


def test_a_wrong_card_names_file_line_and_key(tmp_path: Path) -> None:
    text = (CARDS[0].parent / "scenes.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("class_rule: union", "class_rul: union"))
    with pytest.raises(SisError, match=r"unknown key 'class_rul'.*wrong\.yaml:\d+"):
        load_model(wrong, ProtocolCard)
    wrong.write_text(text.replace("window: 5", "window: 6").replace("window: 7", "window: 6"))
    with pytest.raises(SisError, match="must be odd"):
        load_model(wrong, ProtocolCard)
