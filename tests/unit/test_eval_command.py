# SPDX-License-Identifier: Apache-2.0
"""`sis eval` without its workflow: what is asked for, what is composed, what is shown and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from sis.cli import main
from sis.config.files import dataset_card, named
from sis.config.protocols import ProtocolCard
from sis.data.atomic import atomic_path
from sis.data.image_set import pixel_hashes
from sis.data.images import encode_png
from sis.data.manifest import publish_file, read_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.schemas import SCORES
from sis.data.tables import read_table, write_table_file
from sis.errors import SisError
from sis.evaluation import evaluate as stage
from sis.evaluation.request import Request, choose_controls, choose_protocol, only, run_name
from sis.evaluation.table import plain, score_lines, spelled
from sis.plan import load_plan

DATASET = "scenes_tiny"


def row(metric: str, value: float | None, **changes: Any) -> dict[str, Any]:
    """A row of the score table."""
    facts = {
        "dataset": DATASET, "protocol": "scenes-tiny", "protocol_id": f"id-{metric}", "run": "mine", "run_id": "mine-1",
        "method": "mine", "title": "Mine", "kind": "images", "role": "contestant", "seed": 0, "metric": metric,
        "class_name": "", "value": value, "low": None, "high": None, "unit": "", "direction": "higher", "n_images": 16,
        "n_maps": 16, "stand_in": "", "note": "", "replicates": [],
    }  # fmt: skip
    return facts | changes


# What is asked for.


def test_a_dataset_with_one_protocol_is_judged_by_it() -> None:
    assert choose_protocol(dataset_card("scenes"), "").name == "scenes"
    assert choose_protocol(dataset_card(DATASET), "").name == "scenes-tiny", "'-' and '_' are alike"


def another_protocol(root: Path, name: str, **changes: object) -> None:
    card = yaml.safe_load((root / "config/protocols/scenes-tiny.yaml").read_text())
    (root / f"config/protocols/{name}.yaml").write_text(yaml.safe_dump({**card, "name": name, **changes}))


def test_of_several_protocols_the_one_of_the_datasets_name_is_chosen_or_they_are_listed(project_copy: Path) -> None:
    another_protocol(project_copy, "strict")
    assert choose_protocol(dataset_card(DATASET), "").name == "scenes-tiny"
    assert choose_protocol(dataset_card(DATASET), "strict").name == "strict"
    (project_copy / "config/protocols/scenes-tiny.yaml").unlink()
    assert choose_protocol(dataset_card(DATASET), "").name == "strict"
    (project_copy / "config/protocols/strict.yaml").unlink()
    another_protocol_of = {"a": "x", "b": "y"}
    shutil.copy(project_copy / "config/protocols/scenes.yaml", project_copy / "config/protocols/scenes-tiny.yaml")
    text = (project_copy / "config/protocols/scenes.yaml").read_text()
    for name in another_protocol_of:
        changed = text.replace("name: scenes\n", f"name: {name}\n", 1).replace("dataset: scenes", f"dataset: {DATASET}")
        (project_copy / f"config/protocols/{name}.yaml").write_text(changed)
    with pytest.raises(SisError, match=r"scenes_tiny has 2 protocols .*choose one: --protocol a \| b"):
        choose_protocol(dataset_card(DATASET), "")
    for name in another_protocol_of:
        (project_copy / f"config/protocols/{name}.yaml").unlink()
    with pytest.raises(SisError, match="scenes_tiny has no protocol"):
        choose_protocol(dataset_card(DATASET), "")


def test_a_protocol_of_another_dataset_or_none_is_refused() -> None:
    with pytest.raises(SisError, match=r"protocol scenes judges scenes, not scenes_tiny - protocols of .*scenes-tiny"):
        choose_protocol(dataset_card(DATASET), "scenes")
    with pytest.raises(SisError, match="did you mean 'scenes-tiny'"):
        choose_protocol(dataset_card(DATASET), "scenes-tyni")


def test_some_metrics_make_a_card_with_nothing_else_changed(project_copy: Path) -> None:
    whole = named("protocols", "scenes-tiny", ProtocolCard)
    part = only(whole, ["fd", "miou"])
    assert part.name == "scenes-tiny.miou-fd" and part.metrics == ["miou", "fd"]
    assert part.model_copy(update={"name": whole.name, "metrics": whole.metrics}) == whole
    assert named("protocols", part.name, ProtocolCard) == part, "found by its name, as rules do"
    assert not (project_copy / "config/protocols" / f"{part.name}.yaml").exists()
    assert only(whole, []) is whole and only(whole, [str(m) for m in whole.metrics]) is whole


def test_a_metric_with_settings_of_its_own_keeps_them(project_copy: Path) -> None:
    entries = ["miou", "lpips", {"metric": "lpips", "lpips": {"net": "vgg"}}]
    another_protocol(project_copy, "double", metrics=entries)
    part = only(named("protocols", "double", ProtocolCard), ["lpips"])
    assert [e.card.lpips.net for e in part.entries()] == ["alex", "vgg"]


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"protocol scenes-tiny has no metric 'moiu'.*did you mean 'miou'"):
        only(named("protocols", "scenes-tiny", ProtocolCard), ["moiu"])


def test_controls_are_controls() -> None:
    card = dataset_card(DATASET)
    assert choose_controls(["real", "mismatched-real", "real"], card, "val") == ["real", "mismatched_real"]
    assert choose_controls(["none"], card, "val") == []
    with pytest.raises(SisError, match="no control called 'sdm'"):
        choose_controls(["sdm"], card, "val")
    with pytest.raises(SisError, match="did you mean 'palette'"):
        choose_controls(["palete"], card, "val")


def test_a_split_without_photographs_has_no_real_row() -> None:
    split = dataset_card(DATASET).splits["val"].model_copy(update={"photographs": False})
    card = dataset_card(DATASET).model_copy(update={"splits": {"val": split}})
    assert choose_controls(["real"], card, "val") == [] and choose_controls(["palette"], card, "val") == ["palette"]
    with pytest.raises(SisError, match="has no photographs"):
        choose_controls(["real", "palette"], card, "val")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("SDM Results (final)", "sdm-results-final"), ("..", ""), ("真", "images"), ("-x-", "x"), ("a" * 99, "a" * 40),
        ("real", "real-images"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    request = Request(tmp_path / "x" / folder)
    found = run_name(request, ["real"])
    assert found == name or (not name and found)


@pytest.mark.parametrize("name", ["real", "Mine", "../up", "a b", "a" * 41, "-x"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SisError, match="cannot name a run"):
        run_name(Request(tmp_path, name=name), ["real"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "say of which dataset these images are"),
        (["--dataset", "scenes_tinny"], "did you mean 'scenes_tiny'"),
        (
            ["--dataset", "cityscapes"],
            r"cityscapes is not prepared, and its raw files are not here \[.*data/cityscapes\]",
        ),
        (["--dataset", DATASET, "--out", "Snakefile"], "this is a file, a folder is asked for"),
        (["--dataset", DATASET, "--samples", "-1"], "--samples"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused_before_anything_is_made(
    project_copy: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    folder = project_copy.parent / "pictures"
    folder.mkdir()
    (folder / "a.png").touch()
    before = sorted(project_copy.rglob("*"))
    with pytest.raises(SisError, match=reason):
        raise SisError(_refusal(capsys, [*words, str(folder)]))
    assert sorted(project_copy.rglob("*")) == before


def _refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    try:
        code = main(["eval", *words])
    except SystemExit as stop:  # argparse
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    return err.splitlines()[-1]


# What is shown.


def test_the_table_shows_value_interval_control_number_and_protocol() -> None:
    ours = [row("fid", 31.25, low=30.0, high=32.5, direction="lower", n_images=5000), row("miou", 40.0, unit="%")]
    real = [row("fid", 0.0, direction="lower"), row("miou", 71.0, unit="%", protocol_id="another")]
    lines = spelled(score_lines(ours, {"real": real}, {}), ["real"])
    assert lines[0].split("  ")[0] == "metric" and "real" in lines[0]
    assert lines[1].startswith("mIoU (%) ↑") and "none" in lines[1], "no interval"
    assert lines[1].split()[-3] == "–", "a control of another protocol id is not comparable"
    assert lines[2].startswith("FID ↓") and "[30.0, 32.5]" in lines[2] and "id-fid" in lines[2] and "5,000" in lines[2]
    assert len(lines) == 3


def test_caveats_are_numbered_once() -> None:
    records = {"id-fid": {"networks": [{"name": "inception", "sha256": "1", "verified": False}]}}
    noted = row("fid-train", 3.0, protocol_id="id-fid", note="10 of 12 classes; unverified weights", n_images=9999)
    (line,) = score_lines([noted], {}, records)
    assert line.caveats == ["unverified weights (inception): their publisher states no hash", "10 of 12 classes"]
    ours = [
        row("fid[stand-in:seeded]", 3.0, stand_in="seeded", protocol_id="id-fid"),
        row("fid-val", 2.0),
        row("kid", 1.0),
    ]
    text = "\n".join(spelled(score_lines(ours, {}, records), []))
    assert "stand-in weights (seeded): not the real metric" in text
    assert "unverified weights (inception): their publisher states no hash" in text
    assert text.count("16 images: below 2,048 it is biased upwards") == 1, "kid is not"


@pytest.mark.parametrize(("images", "said"), [(2047, True), (2048, False)])
def test_few_images_are_said(images: int, said: bool) -> None:
    (line,) = score_lines([row("fid", 1.0, n_images=images)], {}, {})
    assert bool(line.caveats) is said


def test_an_undefined_number_says_why() -> None:
    lines = spelled(score_lines([row("lpips-alex", None, note="1 of 2 samples a map")], {}, {}), [])
    assert "–" in lines[1] and "undefined: 1 of 2 samples a map" in lines[1]


def test_plain_data_hold_no_rounding_and_no_class_rows() -> None:
    ours = [row("miou", 1 / 3), row("iou", 0.5, class_name="sky")]
    data = plain(score_lines(ours, {"real": [row("miou", 0.75)]}, {}), ["real"])
    assert (
        [d["metric"] for d in data] == ["miou"] and data[0]["value"] == 1 / 3 and data[0]["controls"] == {"real": 0.75}
    )
    json.dumps(data, allow_nan=False)


# What is composed and written.


@pytest.fixture
def folder(project_copy: Path, tiny_pairs: Path, tmp_path: Path) -> Path:
    """Pictures of a project whose pairs are prepared."""
    shutil.copytree(tiny_pairs, project_copy / "artefacts/pairs" / DATASET)
    for pair in PairSet.open(tiny_pairs / "val"):
        path = tmp_path / "My Pictures" / f"{pair.image_id}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(255 - pair.image))
    return tmp_path / "My Pictures"


def played(project: Path, calls: list[list[str]]) -> Callable[..., None]:
    """A workflow that writes scores without measuring anything."""

    def run(experiment: str, targets: list[str], cores: int, log: Path) -> None:
        calls.append(list(targets))
        plan = load_plan(experiment=experiment)
        for target, spec in zip(targets, plan.runs, strict=True):
            value = 90.0 if spec.name == "real" else 40.0
            rows = [row("miou", value, unit="%", run=spec.name), row("iou", value, class_name="sky")]
            path = project / target
            with atomic_path(path) as temporary:
                write_table_file(pa.Table.from_pylist(rows, schema=SCORES), temporary, SCORES)
                publish_file(temporary, path, "scores", {"protocol": {"id-miou": {"networks": []}}}, RunRecord.start())

    return run


def test_a_folder_becomes_a_table(
    project_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(stage, "run_workflow", played(project_copy, calls))
    assert main(["eval", str(folder), "--dataset", DATASET, "--controls", "real", "palette", "--title", "Mine"]) == 0
    out = capsys.readouterr().out
    assert "Mine on scenes_tiny/val, protocol scenes-tiny" in out and "mIoU (%) ↑" in out and "warning" not in out
    results = project_copy / "results/eval/my-pictures"
    assert {p.name for p in results.glob("scenes-tiny.*")} == {
        "scenes-tiny.parquet", "scenes-tiny.parquet.manifest.json", "scenes-tiny.json", "scenes-tiny.md",
    }  # fmt: skip
    data = json.loads((results / "scenes-tiny.json").read_text())
    assert data["metrics"][0]["controls"] == {"real": 90.0, "palette": 40.0} and data["pattern"] == "{image_id}.png"
    assert data["classes"][0]["class_name"] == "sky" and data["images"] == 16
    assert len(read_table(results / "scenes-tiny.parquet", SCORES)) == 6
    assert main(["verify", str(results)]) == 0
    (targets,) = calls
    assert targets[0] == f"artefacts/scores/{DATASET}/{data['run_id']}/scenes-tiny.parquet" and len(targets) == 3


def test_a_part_of_the_metrics_does_not_overwrite_the_whole_table(
    project_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run_workflow", played(project_copy, []))
    for more in ([], ["--metrics", "miou"]):
        assert main(["eval", str(folder), "--dataset", DATASET, *more]) == 0
    names = {p.name for p in (project_copy / "results/eval/my-pictures").glob("*.json")}
    assert {"scenes-tiny.json", "scenes-tiny.miou.json"} <= names


def test_no_rule_makes_the_set_that_is_judged(
    project_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run_workflow", played(project_copy, []))
    assert main(["eval", str(folder), "--dataset", DATASET]) == 0
    (path,) = (project_copy / "artefacts/eval/experiments").glob("*.yaml")
    plan = load_plan(experiment=path.stem)
    mine, real = plan.runs
    assert mine.given == mine.run_id and mine.run_id not in plan.run_ids("python", "command", "images", "rule")
    assert mine.run_id in plan.run_ids() and real.run_id in plan.run_ids("python")
    assert read_manifest(project_copy / plan.images(DATASET, mine.run_id), "images").meta["run"] == "my-pictures"


def test_a_set_elsewhere_is_linked_to_and_one_at_home_keeps_its_name(
    project_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(stage, "run_workflow", played(project_copy, calls))
    assert main(["eval", str(folder), "--dataset", DATASET]) == 0
    (home,) = (project_copy / "artefacts/images" / DATASET).glob("my-pictures-*")
    assert main(["eval", str(home / "manifest.json")]) == 0, "the set knows its dataset"
    assert calls[0] == calls[1]
    away = folder.parent / "away"
    shutil.copytree(home, away)
    assert main(["eval", str(away), "--controls", "none"]) == 0
    (link,) = (p for p in home.parent.iterdir() if p.is_symlink())
    assert link.resolve() == away and calls[2][0].split("/")[3] == link.name
    assert pixel_hashes(link) == pixel_hashes(home)
    assert main(["eval", str(away)]) == 0, "once more"


def test_partials_of_another_protocol_are_lent_by_their_name(
    project_copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "run_workflow", played(project_copy, []))
    assert main(["eval", str(folder), "--dataset", DATASET]) == 0
    (run,) = (p.name for p in (project_copy / "artefacts/images" / DATASET).iterdir())
    whole = project_copy / "artefacts/partials" / DATASET / run / "scenes-tiny"
    whole.mkdir(parents=True)
    (whole / "miou-12345678.0000.parquet").write_bytes(b"measured")
    (whole / "manifest.json").write_text("its own")
    assert main(["eval", str(folder), "--dataset", DATASET, "--metrics", "miou"]) == 0
    lent = whole.with_name("scenes-tiny.miou")
    assert {p.name: p.read_bytes() for p in lent.iterdir()} == {"miou-12345678.0000.parquet": b"measured"}


def test_training_photographs_of_another_stored_size_are_known_by_their_view(
    project_copy: Path, folder: Path, tmp_path: Path
) -> None:
    from sis.sampling.copies import find_copies, photographs

    card = project_copy / "config/datasets/scenes_tiny.yaml"
    card.write_text(card.read_text() + "prepare: {policy: sdm}\n")
    augmented = tmp_path / "train"
    assert main(["prepare", "--dataset", DATASET, "--split", "train", "--out", str(augmented)]) == 0
    pairs = PairSet.open(augmented)
    assert pairs.augmented
    cache = tmp_path / "cache.json"
    known = photographs(pairs, cache)
    from sis.data.images import pixel_sha256

    seen = pixel_sha256(pairs.get(7).image)
    copies = find_copies({("val-00000", 0): seen, ("val-00001", 0): "other"}, {}, known)
    assert copies.training == [f"val-00000 = {pairs.ids[7]}"] and not copies.truth
    assert photographs(pairs, cache) == known
    cache.write_text(cache.read_text().replace(seen, "0" * 64))
    assert photographs(pairs, cache) == known, "a damaged cache is made again"
