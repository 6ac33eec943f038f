# SPDX-License-Identifier: Apache-2.0
"""Editing a photograph: only the region changes, the record says how, and whatever cannot be meant is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sis.cli import main
from sis.config.cards import RawFiles
from sis.data.atomic import write_bytes_atomic
from sis.data.images import decode_png, encode_png
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.tensors import save_tensors
from sis.diffusion.denoiser import Denoiser, Prediction
from sis.diffusion.pixel_diffusion import PixelDiffusion
from sis.diffusion.pixels import to_uint8
from sis.diffusion.repaint import Resampling
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.discovery import method_class, method_info
from sis.methods.sdm import SDM
from sis.plan import RunSpec, load_plan
from sis.sampling.diffusion_model import open_diffusion
from sis.sampling.edit import EditJob, edit, grown, read_scene

SPEC = load_plan(experiment="tiny").spec("scenes_tiny", "sdm-s1.5")
CAR, ROAD, VOID = 6, 4, 255


def random_model(path: Path) -> Path:
    """Weights for SPEC of which none is zero, so that the network's answer depends on all that it is given."""
    network = build_method(SPEC, "cpu", None, None).network
    generator = torch.Generator().manual_seed(0)
    tensors = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
    save_tensors(tensors, path, "model", {}, RunRecord.start())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("edit") / "model.safetensors")


@pytest.fixture(scope="module")
def pictures(tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `image.png`, `label.png` and `edited.png`, in which a square has become a car."""
    folder = tmp_path_factory.mktemp("pictures")
    pair = PairSet.open(tiny_pairs / "val").get(3)
    edited = pair.label.copy()
    edited[10:16, 12:20] = CAR
    assert (edited != pair.label).sum() > 20
    for name, picture in (("image", pair.image), ("label", pair.label), ("edited", edited)):
        write_bytes_atomic(folder / f"{name}.png", encode_png(picture))
    return folder


Make = Callable[..., EditJob]


@pytest.fixture
def job(model: Path, pictures: Path, tmp_path: Path) -> Make:
    """`job(**changes)`: an edit with two rounds on a chain of five steps."""

    def make(**changes: Any) -> EditJob:
        files = {"image": "image.png", "label": "label.png", "edited_label": "edited.png"}
        keys = {"out": tmp_path / "out" / "new.png", "model": model, "how": Resampling(2, 1), "steps": 5}
        return EditJob(SPEC, **{**{k: pictures / v for k, v in files.items()}, **keys, **changes})

    return make


def read(path: Path) -> np.ndarray:
    return decode_png(path.read_bytes()).copy()


def test_only_the_region_changes(job: Make, pictures: Path) -> None:
    picture, sheet, record = edit(job())
    original, edited = read(pictures / "image.png"), read(picture)
    region = grown(read(pictures / "label.png") != read(pictures / "edited.png"), 3)
    assert np.array_equal(edited[~region], original[~region]) and 0.02 < region.mean() < 0.3
    assert (edited[region] != original[region]).any(-1).mean() > 0.95
    assert (picture.name, sheet.name, record.name) == ("new.png", "new-sheet.png", "new.json")
    assert read(sheet).shape[1] > 5 * 128
    facts = json.loads(record.read_text())
    assert facts["edited_pixels"] == region.sum() and facts["evaluations"] == 5 + 4 and facts["grow"] == 3
    assert facts["steps"] == [0, 12, 24, 37, 49] and facts["resampling"] == {"rounds": 2, "jump": 1}
    assert facts["seed"] == SPEC.sample_seed and facts["image_id"] == "image" and len(facts["model"]) == 64
    assert set(facts["pictures"]) == {"new.png"} and {"commit", "host", "seconds"} <= set(facts["run"])


def test_all_grey_levels_of_the_known_pixels_survive() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8((levels.float() / 127.5 - 1).reshape(1, 1, 16, 16), ("a",)).flatten(), levels)


def test_a_sample_does_not_depend_on_how_many_are_drawn(job: Make, tmp_path: Path) -> None:
    one, *_ = edit(job(out=tmp_path / "one.png"))
    *several, sheet, _ = edit(job(out=tmp_path / "several.png", samples=3))
    assert [p.name for p in several] == ["several_000.png", "several_001.png", "several_002.png"]
    assert several[0].read_bytes() == one.read_bytes() and len({p.read_bytes() for p in several}) == 3
    assert read(sheet).shape[1] > read(tmp_path / "one-sheet.png").shape[1]


def test_the_seed_decides_the_picture(job: Make, tmp_path: Path) -> None:
    first, *_ = edit(job(out=tmp_path / "a.png"))
    again, *_ = edit(job(out=tmp_path / "b.png"))
    other, *_ = edit(job(out=tmp_path / "c.png", seed=7))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_the_region_is_drawn_for_the_edited_label_map(
    job: Make, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    own = SDM.denoiser

    def watched(self: SDM, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        seen.append(labels)
        return own(self, labels, instances)

    monkeypatch.setattr(SDM, "denoiser", watched)
    car, *_ = edit(job(out=tmp_path / "car.png"))
    changed = read(pictures / "edited.png")
    changed[changed == CAR] = ROAD
    write_bytes_atomic(tmp_path / "road-label.png", encode_png(changed))
    road, *_ = edit(job(out=tmp_path / "road.png", edited_label=tmp_path / "road-label.png"))
    channels = torch.from_numpy(np.where(changed == VOID, 10, changed)).long()
    assert len(seen) == 2 and torch.equal(seen[1][0], channels) and (seen[0][0] == CAR).sum() > 20
    assert (read(car) != read(road)).any()


def test_the_region_grows_by_so_many_pixels() -> None:
    region = np.zeros((9, 9), bool)
    region[4, 4] = region[0, 8] = True
    rows, columns = np.mgrid[:9, :9]
    for pixels in (0, 1, 3):
        near = (abs(rows - 4) + abs(columns - 4) <= pixels) | (rows + abs(columns - 8) <= pixels)
        assert np.array_equal(grown(region, pixels), near)
    assert region.sum() == 2


def test_steps_are_those_of_the_run_unless_others_are_given(job: Make, tmp_path: Path) -> None:
    *_, record = edit(job(steps=0))
    assert len(json.loads(record.read_text())["steps"]) == SPEC.sample["steps"]


@pytest.mark.parametrize(
    ("sample", "eta"), [({}, None), ({"sampler": "ddim", "eta": 0.5}, 0.5), ({"sampler": "dpm_solver"}, 0.0)]
)
def test_a_step_is_one_of_the_runs_own_sampler(model: Path, sample: dict[str, Any], eta: float | None) -> None:
    numbers = [0.1, 0.0, -0.1, 0.4, 0.5, 0.6]
    changed = {**SPEC.sample, **sample, "clip": False, "variance": "small", "channel_statistics": numbers}
    step = open_diffusion(dataclasses.replace(SPEC, sample=changed), model, "cpu").step
    assert (step.eta, step.clip, step.variance) == (eta, False, "small")
    assert step.statistics is not None and step.statistics.tolist() == torch.tensor(numbers).reshape(2, 3).tolist()
    assert open_diffusion(SPEC, model, "cpu").step.statistics is None


def test_what_a_method_must_offer_decides_who_can_edit() -> None:
    assert issubclass(method_class("sdm"), PixelDiffusion)
    assert not any(issubclass(method_class(name), PixelDiffusion) for name in ("palette", "real", "class_mean"))


def spoilt(name: str, folder: Path, pictures: Path) -> dict[str, Any]:
    """The changes of a job that make it wrong."""
    label, edited, image = (read(pictures / f"{n}.png") for n in ("label", "edited", "image"))
    unknown = edited.copy()
    unknown[0, 0] = 77
    files = {
        "size": ("edited_label", edited[:-1]),
        "photograph's size": ("image", image[:, :-2]),
        "unknown id": ("edited_label", unknown),
        "no difference": ("edited_label", label),
        "sixteen bits": ("edited_label", edited.astype(np.uint16)),
        "colours": ("edited_label", np.repeat(edited[..., None], 3, 2)),
    }
    if name in files:
        key, picture = files[name]
        write_bytes_atomic(folder / "spoilt.png", encode_png(picture))
        return {key: folder / "spoilt.png"}
    if name == "palette":
        picture = Image.fromarray(edited)
        picture.putpalette([0] * 768)
        picture.save(folder / "spoilt.png")
        return {"edited_label": folder / "spoilt.png"}
    if name == "other network":
        fit = {**SPEC.fit, "width": 16}
        return {"spec": dataclasses.replace(SPEC, fit=fit)}
    changes: dict[str, dict[str, Any]] = {
        "no such file": {"image": folder / "none.png"},
        "not a picture": {"label": Path(__file__)},
        "no model": {"model": None},
        "missing model": {"model": folder / "none.safetensors"},
        "long jump": {"how": Resampling(2, 5)},
        "many steps": {"steps": 51},
        "control": {"spec": dataclasses.replace(SPEC, method=method_info("palette"), fit={}, sample={})},
        "rule": {"spec": dataclasses.replace(SPEC, method=method_info("retrieval"), fit={}, sample={})},
        "needless instances": {"instance": pictures / "label.png"},
        "jpeg out": {"out": folder / "out" / "new.jpg"},
        "no samples": {"samples": 0},
        "shrunk": {"grow": -1},
    }
    return changes[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("size", "a picture of 32x31, scenes_tiny has 32x32"),
        ("photograph's size", "a picture of 30x32"),
        ("unknown id", "outside the table 'scenes': 77"),
        ("no difference", "do not differ"),
        ("sixteen bits", "of 16 bits"),
        ("colours", "a colour picture, not ids"),
        ("palette", "palette"),
        ("other network", "do not fit the network"),
        ("no such file", "no such file"),
        ("not a picture", "test_edit.py"),
        ("no model", "give --model"),
        ("missing model", "no such artefact"),
        ("long jump", "too short to go back 5"),
        ("many steps", "cannot keep 51 of 50"),
        ("control", "palette draws no picture by denoising pixels step by step.* choose a run of .*sdm"),
        ("rule", "retrieval draws no picture by denoising"),
        ("needless instances", "no method reads an instance map"),
        ("jpeg out", r"a file called \*\.png"),
        ("no samples", "at least one sample"),
        ("shrunk", "0 or more pixels"),
    ],
)
def test_an_edit_that_cannot_be_meant_is_refused_and_writes_nothing(
    name: str, reason: str, job: Make, pictures: Path, tmp_path: Path
) -> None:
    changes = spoilt(name, tmp_path, pictures)
    with pytest.raises(SisError, match=reason):
        edit(dataclasses.replace(job(), **changes))
    assert not (tmp_path / "out").exists()


def test_a_network_that_answers_nonsense_is_refused(job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SDM, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        return lambda x, t: Prediction(x / 0, None)

    monkeypatch.setattr(SDM, "denoiser", broken)
    with pytest.raises(SisError, match="not finite at step t = 49: image"):
        edit(job())
    assert not (tmp_path / "out").exists()


def with_edges(instances: str) -> RunSpec:
    """SPEC on a dataset whose instance edges are an input."""
    card = SPEC.dataset.model_copy(update={"edges": True, "files": RawFiles.model_validate({"instances": instances})})
    return dataclasses.replace(SPEC, dataset=card)


def test_where_edges_come_from_files_both_instance_maps_are_needed(job: Make, pictures: Path, tmp_path: Path) -> None:
    before = np.zeros((32, 32), np.uint16)
    after = before.copy()
    after[20:24, 2:6] = 300
    for name, instance in (("before", before), ("after", after)):
        write_bytes_atomic(tmp_path / f"{name}.png", encode_png(instance))
    spec, files = with_edges("file"), {"instance": tmp_path / "before.png", "edited_instance": tmp_path / "after.png"}
    scene = read_scene(dataclasses.replace(job(grow=0), spec=spec, **files))
    assert scene.region[20:24, 2:6].all() and scene.region[12, 14]
    assert scene.after.instance is not None and scene.after.instance[21, 3] == 300
    same = dataclasses.replace(job(grow=0), spec=spec, edited_label=pictures / "label.png", **files)
    assert read_scene(same).region.sum() == 16, "touching things of one class can be told apart by instances alone"
    for missing in files:
        with pytest.raises(SisError, match="give --instance and --edited-instance"):
            read_scene(dataclasses.replace(job(), spec=spec, **{**files, missing: None}))
    small = tmp_path / "small.png"
    write_bytes_atomic(small, encode_png(after[:, 1:]))
    with pytest.raises(SisError, match="a picture of 31x32"):
        read_scene(dataclasses.replace(job(), spec=spec, instance=small, edited_instance=files["edited_instance"]))


def test_where_edges_come_from_label_maps_no_instance_map_is_asked_for(job: Make) -> None:
    scene = read_scene(dataclasses.replace(job(), spec=with_edges("label")))
    assert scene.after.instance is not None and np.array_equal(scene.after.instance, scene.after.label)


@pytest.fixture
def words(pictures: Path, model: Path, tmp_path: Path) -> list[str]:
    run = ["--experiment", "tiny", "--dataset", "scenes_tiny", "--run", "sdm-s1.5", "--device", "cpu"]
    files = [str(pictures / f"{n}.png") for n in ("image", "label", "edited")]
    return ["edit", *files, *run, "--model", str(model), "--out", str(tmp_path / "new.png")]


def test_the_command_edits_and_names_its_files(
    words: list[str], job: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "2", "--jump", "1", "--steps", "5", "--samples", "2", "--seed", "7", "--grow", "1"]
    assert main([*words, *options]) == 0
    names = ["new_000.png", "new_001.png", "new-sheet.png", "new.json"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {tmp_path / name}" for name in names]
    same = edit(job(out=tmp_path / "same.png", samples=2, seed=7, grow=1))
    assert [p.read_bytes() for p in same[:3]] == [(tmp_path / name).read_bytes() for name in names[:3]]


def test_the_command_refuses_in_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--rounds", "2"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: a chain of 4 steps is too short to go back 10") and err.count("\n") == 1


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["edit", "--help"])
    assert caught.value.code == 0 and "--grow" in capsys.readouterr().out


def test_noise_is_keyed_by_the_pictures_name(job: Make, pictures: Path, tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "other.png", (pictures / "image.png").read_bytes())
    first, *_ = edit(job(out=tmp_path / "a.png"))
    other, *_ = edit(job(out=tmp_path / "b.png", image=tmp_path / "other.png"))
    assert first.read_bytes() != other.read_bytes()
