# SPDX-License-Identifier: Apache-2.0
"""Cards: every file in config/ loads, and a card that cannot work is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sis.config import files
from sis.config.cards import DatasetCard, MethodCard
from sis.config.protocols import ProtocolCard, ProtocolRecord, protocol_id
from sis.config.strict_yaml import validate
from sis.errors import SisError

CONFIG = Path(__file__).parents[2] / "config"


def stems(kind: str) -> list[str]:
    return sorted(p.stem for p in (CONFIG / kind).glob("*.yaml"))


@pytest.mark.parametrize("name", stems("datasets"))
def test_every_dataset_card_loads(name: str) -> None:
    card = files.dataset_card(name)
    assert card.name == name and card.licence and card.source
    assert files.label_space(card.labels).count > 0


@pytest.mark.parametrize("name", stems("experiments"))
def test_every_experiment_loads_and_names_existing_protocols(name: str) -> None:
    experiment = files.experiment(name)
    for dataset, use in experiment.datasets.items():
        assert files.named("protocols", use.protocol, ProtocolCard).dataset == dataset


@pytest.mark.parametrize("name", stems("methods"))
def test_every_method_card_loads(name: str) -> None:
    assert files.method_card(CONFIG / "methods" / f"{name}.yaml").title


@pytest.mark.parametrize("name", stems("protocols"))
def test_every_protocol_card_loads(name: str) -> None:
    card = files.named("protocols", name, ProtocolCard)
    assert {card.split, card.reference.split} <= set(files.dataset_card(card.dataset).splits)


@pytest.mark.parametrize("name", stems("labels"))
def test_every_label_table_loads_and_its_names_are_distinct(name: str) -> None:
    space = files.label_space(name)
    assert space.name == name and space.evaluated_ids
    assert len({c.name for c in space.classes}) == space.count


def test_the_site_settings_load_and_can_be_overridden() -> None:
    assert files.settings({"device": "cpu"}).device == "cpu"
    with pytest.raises(SisError, match=r"unknown key 'divice'.*did you mean 'device'"):
        files.settings({"divice": "cpu"})


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"no dataset called 'scene'.*did you mean 'scenes'"):
        files.dataset_card("scene")
    with pytest.raises(SisError, match="no experiment called"):
        files.experiment("nothing-like-this")


def test_the_name_inside_a_file_is_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text((CONFIG / "datasets" / "scenes_tiny.yaml").read_text())
    with pytest.raises(SisError, match="'scenes_tiny' differs from the file's name 'other'"):
        files.dataset_card(str(path))


def test_a_card_may_be_given_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "scenes_tiny.yaml"
    path.write_text((CONFIG / "datasets" / "scenes_tiny.yaml").read_text())
    assert files.dataset_card(str(path)) == files.dataset_card("scenes_tiny")


def test_a_run_that_names_an_absent_dataset_is_refused(tmp_path: Path) -> None:
    data = yaml.safe_load((CONFIG / "experiments" / "tiny.yaml").read_text())
    data["runs"] = {"real": {"method": "real", "datasets": ["scenes_tinny"]}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(SisError, match=r"run 'real' names dataset 'scenes_tinny'.*did you mean 'scenes_tiny'"):
        files.experiment(str(path))


def test_the_project_is_found_from_any_folder_inside(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.project_root() == project_copy
    files.project_root.cache_clear()
    monkeypatch.chdir(project_copy / "config" / "methods")
    assert files.project_root() == project_copy


GOOD: dict[str, Any] = {
    "command": {"kind": "command", "title": "T", "command": "run {labels} {out} {ids} {seed}"},
    "images": {"kind": "images", "title": "T", "path": "data/{dataset}", "pattern": "{image_id}_{sample:03d}.png"},
}


@pytest.mark.parametrize("kind", list(GOOD))
def test_a_complete_method_card_is_accepted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(GOOD[kind]))
    assert files.method_card(path).kind == kind


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("command", {"command": "run {labels}"}, "at least {labels} and {out}"),
        ("command", {"command": ""}, "at least {labels} and {out}"),
        ("command", {"command": "run {labels} {out} {prompt}"}, "unknown field {prompt}"),
        ("command", {"command": "run {labels} {out} {}"}, "unknown field {}"),
        ("command", {"command": "run {labels} {out} {seed.__class__}"}, "unknown field {seed.__class__}"),
        ("command", {"command": "run {labels} {out} {"}, "m.yaml"),
        ("command", {"command": "run '{labels} {out}"}, "m.yaml"),
        ("command", {"container": "docker://busybox:latest"}, "digest"),
        ("command", {"timeout_minutes": 0.0}, "timeout_minutes"),
        ("command", {"kind": "shell"}, "kind"),
        ("images", {"path": ""}, "needs `path:`"),
        ("images", {"pattern": "picture.png"}, "must contain {image_id}"),
        ("images", {"pattern": "{image_id}_{smaple}.png"}, "unknown field {smaple}"),
        ("images", {"pattern": "{image_id}_{.png"}, "m.yaml"),
    ],
)
def test_a_method_card_that_cannot_work_is_refused(
    tmp_path: Path, kind: str, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(GOOD[kind] | change))
    with pytest.raises(SisError) as caught:
        files.method_card(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["../evil", "a b", "UPPER", "-x", ".hidden", "", "a;b", "x" * 65, "a/b", "a\nb"])
def test_names_are_safe_in_paths_and_shells(name: str) -> None:
    card = files.dataset_card("scenes_tiny").model_dump() | {"name": name}
    with pytest.raises(SisError, match="name"):
        validate(DatasetCard, card, "card")


def test_a_dataset_needs_train_and_val() -> None:
    card = files.dataset_card("scenes_tiny").model_dump() | {"splits": {"train": {"count": 3}}}
    with pytest.raises(SisError, match="at least train and val"):
        validate(DatasetCard, card, "card")


def test_a_card_may_hold_its_label_table(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    table = {"void": None, "classes": [{"id": 0, "name": "a", "colour": [1, 2, 3]}]}
    card = yaml.safe_load((CONFIG / "datasets" / "scenes.yaml").read_text()) | {"name": "own", "labels": table}
    path.write_text(yaml.safe_dump(card))
    space = files.label_space(files.dataset_card(str(path)).labels)
    assert (space.name, space.width) == ("own", 1)


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({}, "data/mini/cityscapes"),
        ({"data": "/raw"}, "/raw/mini/cityscapes"),
        ({"roots": {"cityscapes_mini": "/elsewhere"}}, "/elsewhere"),
        ({"roots": {"cityscapes": "/whole"}}, "data/mini/cityscapes"),
    ],
)
def test_raw_files_lie_where_the_card_or_the_site_says(settings: dict[str, Any], folder: str) -> None:
    card = files.dataset_card("cityscapes_mini")
    assert files.dataset_root(card, files.settings(settings)) == files.project_root() / folder


def test_variants_share_the_folder_that_the_site_names() -> None:
    site = files.settings({"roots": {"cityscapes": "/whole", "cityscapes_512": "/other"}})
    found = {n: files.dataset_root(files.dataset_card(n), site) for n in ("cityscapes_release", "cityscapes_512")}
    assert found == {"cityscapes_release": Path("/whole"), "cityscapes_512": Path("/other")}


def test_a_card_is_frozen() -> None:
    card = MethodCard.model_validate(GOOD["images"])
    with pytest.raises(ValueError, match="frozen"):
        card.title = "other"  # type: ignore[misc]


def test_every_fact_of_a_protocol_changes_its_id() -> None:
    record = ProtocolRecord.model_validate(
        {"version": 1, "dataset": "d", "split": "val", "pairs_sha256": "ab", "label_maps": 5, "samples_per_map": 1,
         "size": [32, 32], "metric": "miou", "metric_version": 1, "settings": {"class_rule": "union"},
         "labels_sha256": "", "judge": {"name": "net"}, "networks": [{"name": "net", "sha256": "cd"}],
         "reference": {"split": "train", "pairs_sha256": "ef", "count": 9},
         "bootstrap": {"replicates": 10, "seed": 1}}
    )  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"version": 2}, {"dataset": "e"}, {"split": "test"}, {"pairs_sha256": "ac"}, {"label_maps": 6},
        {"samples_per_map": 2}, {"size": [32, 64]}, {"metric": "fd"}, {"metric_version": 2},
        {"settings": {"class_rule": "gt"}}, {"networks": []}, {"judge": None}, {"labels_sha256": "a"},
        {"reference": None},
        {"bootstrap": record.bootstrap.model_copy(update={"seed": 2})},
    ]  # fmt: skip
    assert {next(iter(c)) for c in changes} == set(ProtocolRecord.model_fields)
    ids = [protocol_id(record), *(protocol_id(record.model_copy(update=c)) for c in changes)]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)
    assert protocol_id(record.model_copy()) == ids[0]
