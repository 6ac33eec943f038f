# SPDX-License-Identifier: Apache-2.0
"""`sis eval` against each row from 9 to 23 of the project's list of bad inputs: one line, code 2, nothing torn.

The rows are those of the research notes (anchors C5). What is refused by looking at the folder leaves no file at all;
what only a network or a partial shows is refused by the stage that reads it, and what was finished before is kept.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_folders import (
    ABSURD,
    BOMB,
    GREY_16,
    RGB_16,
    RGB_PNG,
    WHOLE_JPEG,
    both_normal_forms,
    fifo,
    link_out,
    picture,
    png,
    remove,
    same,
    strangers,
)
from judged_folder import CLASSES, OPTIONS, PROTOCOL, World, built

from evaluators.nets.face_unet import FaceUNet
from evaluators.weights_pins import write_pins
from sis.data.images import encode_png
from sis.data.manifest import file_sha256, read_manifest, write_manifest_of
from sis.data.pairs import PairSet

pytestmark = [pytest.mark.faults, pytest.mark.slow]

QUICK = ["--metrics", "miou"]


@dataclass(frozen=True)
class Fault:
    """spoil: damages a good world, and may return the folder to judge; more: further arguments; words: of the line;
    early: whether the folder alone tells, so that nothing may be written."""

    spoil: Callable[[World], Path | None]
    words: list[str]
    more: list[str]
    early: bool = True


def on_folder(spoil: Callable[[Path], object], *words: str, more: list[str] | None = None) -> Fault:
    def strike(world: World) -> None:
        spoil(world.folder)

    return Fault(strike, list(words), more or [])


def on_file(data: bytes, *words: str) -> Fault:
    return on_folder(lambda folder: (folder / png(2)).write_bytes(data), png(2), *words)


def late(spoil: Callable[[World], Path | None], *words: str, more: list[str] | None = None) -> Fault:
    return Fault(spoil, list(words), QUICK if more is None else more, early=False)


def flip(path: Path, position: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])


def flipped_set(world: World) -> Path:
    """An image set, made of the folder before, one of whose pixels changed."""
    out = world.project.parent / "set"
    made = world.say(["import", world.folder, "--pairs", world.pairs, "--name", "mine", "--out", out])
    assert made.code == 0, made.err
    flip(out / "shard-0000.parquet", 3000)
    return out


def truth(world: World) -> None:
    for pair in PairSet.open(world.pairs):
        (world.folder / f"{pair.image_id}.png").write_bytes(encode_png(pair.image))


def device(folder: Path) -> None:
    (folder / png(6)).unlink()
    (folder / png(6)).symlink_to("/dev/zero")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return (open, (str(self.sentinel), "w"))


def malicious_weights(world: World) -> None:
    world.weigh({"weight": Trap(world.project / "sentinel")})


def checkpoint(world: World, classes: int = CLASSES) -> Path:
    return world.weigh(FaceUNet(int(OPTIONS["feature_scale"]), classes).state_dict())


def of_other_classes(world: World) -> None:
    checkpoint(world, 19)


def preset_of_other_classes(world: World) -> None:
    world.protocol(segmenter=world.preset("face-19", classes=19))


def without_a_weight(world: World) -> None:
    state = torch.load(checkpoint(world), weights_only=True)
    name = next(iter(state))
    world.weigh({"renamed" if key == name else key: value for key, value in state.items()})


def flipped_weights(world: World) -> None:
    """A file that was pinned when it was whole."""
    path = checkpoint(world)
    write_pins(path.parent, {"small-face": file_sha256(path)})
    flip(path, 5000)


def cut_weights(world: World) -> None:
    path = checkpoint(world)
    os.truncate(path, path.stat().st_size // 2)


def narrower_table(world: World) -> None:
    """Pairs that claim a narrower label table than the one that they were prepared with."""
    body = json.loads((world.pairs / "manifest.json").read_text())
    body["meta"]["labels"]["classes"] = body["meta"]["labels"]["classes"][:4]
    write_manifest_of(world.pairs, "pairs", body["files"], body["meta"], body["run"])
    world.protocol(segmenter=world.preset("face-4", classes=4))


def judged_once(world: World) -> None:
    assert world.eval().code == 0
    shutil.rmtree(world.project / "results")


def flipped_statistics(world: World) -> None:
    judged_once(world)
    (path,) = world.reference.glob("fid-*.parquet")
    flip(path, path.stat().st_size // 2)


def statistics_of(**changes: object) -> Callable[[World], None]:
    """The reference as another protocol measured it, put where this one's is looked for."""

    def strike(world: World) -> None:
        judged_once(world)
        other = world.protocol("other", **changes)
        assert world.eval("--protocol", other).code == 0
        shutil.rmtree(world.project / "results")
        shutil.rmtree(world.reference)
        shutil.copytree(world.reference.with_name(other), world.reference)

    return strike


def altered(fact: str, value: object, which: str = "_reference") -> Callable[[World], None]:
    """Partials whose record says that they are of other pictures: of another size, dataset or split."""

    def strike(world: World) -> None:
        judged_once(world)
        (folder,) = (world.project / "artefacts/partials/scenes_tiny").glob(f"{which}/{PROTOCOL}")
        body = json.loads((folder / "manifest.json").read_text())
        meta = body["meta"]
        (meta["facts"] if fact in meta["facts"] else meta["images"])[fact] = value
        write_manifest_of(folder, "partials", body["files"], meta, body["run"])

    return strike


def one_image(world: World) -> None:
    card = world.project / "config/datasets/scenes_tiny.yaml"
    card.write_text(card.read_text().replace("val: {count: 16}", "val: {count: 1}"))
    shutil.rmtree(world.pairs)
    made = world.say(["prepare", "--dataset", "scenes_tiny", "--split", "val", "--out", world.pairs])
    assert made.code == 0
    remove(*range(1, 16))(world.folder)


DECOMPOSED = ["--pattern", unicodedata.normalize("NFD", "bild ä {image_id}.png")]
FAULTS: dict[str, Fault] = {
    "9 truncated PNG": on_file(RGB_PNG[:-20], "truncated PNG"),
    "9 truncated JPEG": on_file(WHOLE_JPEG[:-20], "invalid PNG: the file is a JPEG"),
    "10 flipped pixel after the manifest": Fault(flipped_set, ["content changed", "shard-0000.parquet"], []),
    "11 missing ids": on_folder(remove(*range(9)), f"9 of 16 images are missing: {png(0)}, {png(1)}", "and 4 more"),
    "11 extra ids": on_folder(strangers("x.png", "y.png"), "2 images belong to no label map: x.png, y.png"),
    "11 duplicate ids": on_folder(both_normal_forms, "1 images have several files", more=DECOMPOSED),
    "12 copied content": on_folder(same((0, 1), (0, 2)), "2 of 16 images have the very pixels"),
    "13 ground truth": Fault(truth, ["16 of 16 images are the real photographs of the split themselves"], []),
    "14 wrong size": on_file(picture("RGB", size=(16, 32)), "image is 32x16, expected 32x32"),
    "14 grey": on_file(picture("L"), "PNG of mode L, expected RGB"),
    "14 alpha": on_file(picture("RGBA"), "PNG of mode RGBA, expected RGB"),
    "14 16-bit colour": on_file(RGB_16, "PNG of 16 bits a channel"),
    "14 16-bit grey": on_file(GREY_16, "PNG of mode I;16"),
    "14 CMYK": on_file(picture("CMYK", "TIFF"), "invalid PNG"),
    "14 JPEG where lossless is required": on_file(WHOLE_JPEG, "the file is a JPEG", "write it as PNG"),
    "15 decompression bomb": on_file(BOMB, "picture of 20000x20000 is over 64 MP"),
    "15 absurd header": on_file(ABSURD, "is over 64 MP"),
    "16 link out of the folder": on_folder(link_out, "an image leads out of its folder", png(6)),
    "16 device": on_folder(device, f"1 of 16 images are missing: {png(6)}"),
    "16 pipe": on_folder(fifo, f"1 of 16 images are missing: {png(6)}"),
    "17 malicious pickle": late(malicious_weights, "nothing in it was run", "small-face.pth"),
    "18 bit flip in weights": late(flipped_weights, "sha256 begins with", "pins.yaml", "small-face.pth"),
    "18 truncated weights": late(cut_weights, "small-face.pth"),
    "18 weights that are not the published ones": late(
        lambda w: (w.weigh(b"0" * 99, "pt_inception-2015-12-05-6726825d.pth"), None)[1],
        "expected 6726825d", "fetch it again", more=["--metrics", "fid"],
    ),
    "18 bit flip in statistics": late(flipped_statistics, "content changed", "fid-", more=[]),
    "19 checkpoint of another class count": late(of_other_classes, "does not fit the network", "19", f"{CLASSES}"),
    "19 checkpoint with a weight missing": late(without_a_weight, "1 missing", "1 unexpected", "renamed"),
    "19 segmenter of another class count": late(preset_of_other_classes, "19 classes", f"has {CLASSES} that count"),
    "20 label id outside the table": late(narrower_table, "label ids outside the table 'scenes': 4", "image val-"),
    "22 statistics of another extractor's layer": late(
        statistics_of(features={"options": {"dims": 192}}), "measured under another protocol", "measure again", more=[]
    ),
    "22 statistics of another resize": late(
        statistics_of(features={"options": {"dims": 64, "resize": "clean"}}), "measured under another protocol", more=[]
    ),
    "22 statistics of another size": late(
        altered("size", [64, 64]), "the reference is of images of 64x64, the others are of 32x32", more=[]
    ),
    "22 statistics of another dataset": late(
        altered("dataset", "scenes"), "partials of scenes, protocol 'strict' judges scenes_tiny", more=[]
    ),
    "22 partials of another split": late(
        altered("split", "train", "pictures-*"), "partials of scenes_tiny/train, protocol 'strict' judges val", more=[]
    ),
    "23 one image": Fault(one_image, ["1 image is too few: a distribution needs two"], []),
}  # fmt: skip


@pytest.fixture
def world(
    project_copy: Path, tiny_pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> World:
    return built(project_copy, tiny_pairs, project_copy.parent / "pictures", monkeypatch, capsys)


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_input_has_its_one_line(world: World, name: str) -> None:
    fault = FAULTS[name]
    folder = fault.spoil(world)
    before, was_whole = world.files(), world.is_whole()
    line = world.refused(world.eval(*fault.more, folder=folder))
    for word in fault.words:
        assert word in line
    assert world.is_whole() or not was_whole
    if fault.early:
        assert world.files() == before
    assert not (world.project / "sentinel").exists()


def test_every_row_is_here() -> None:
    """Row 21 and halves of others ask for a number with a remark, see below."""
    assert {int(name.split()[0]) for name in FAULTS} | {21} == set(range(9, 24))


def test_a_trap_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sentinel")}, tmp_path / "file.pth")
    torch.load(tmp_path / "file.pth", weights_only=False)["weight"].close()
    assert (tmp_path / "sentinel").exists()


def judged(world: World, *words: str) -> str:
    answer = world.eval(*words)
    assert answer.code == 0, answer.err
    return answer.out


def test_row_12_and_13_below_the_threshold_are_said_beside_the_number(world: World) -> None:
    shutil.copy(world.folder / png(0), world.folder / png(1))
    assert "1 of 16 images show the very pixels of another label map's picture" in judged(world, *QUICK)
    (world.folder / png(1)).write_bytes(encode_png(PairSet.open(world.pairs).get(1).image))
    assert "1 of 16 images are photographs of the judged split: val-00001 = val-00001" in judged(world, *QUICK)


def test_row_17_statistics_that_somebody_put_into_the_folder_are_never_opened(world: World) -> None:
    trap = np.empty(1, object)
    trap[0] = Trap(world.project / "sentinel")
    np.savez(world.folder / "stats.npz", mu=trap)
    assert "mIoU" in judged(world, *QUICK)
    assert not (world.project / "sentinel").exists()


def test_row_20_and_21_void_and_absent_classes_are_left_out_and_counted(world: World) -> None:
    """The stand-in finds a few classes; those without labels or predictions leave the mean, and the table says so."""
    from evaluators.segmenters import face_unet
    from sis.data.labels import LabelSpace

    seen = LabelSpace.model_validate(read_manifest(world.pairs).meta["labels"])
    sky, void = seen.evaluated_ids[0], seen.void
    assert void is not None
    with pytest.MonkeyPatch.context() as patch:
        honest = PairSet.by_id

        def by_id(self: PairSet, image_id: str) -> object:
            import dataclasses

            pair = honest(self, image_id)
            value = void if image_id == "val-00003" else sky
            return dataclasses.replace(pair, label=np.full_like(pair.label, value))

        patch.setattr(PairSet, "by_id", by_id)
        answer = lambda self, images, size: np.zeros((len(images), *size), np.uint8)  # noqa: E731
        patch.setattr(face_unet.FaceSegmenter, "predict", answer)
        out = judged(world, *QUICK)
    row = next(line for line in out.splitlines() if line.startswith("mIoU"))
    assert "100" in row and f"1 of {CLASSES} classes" in out


def test_row_23_few_images_are_said_and_no_image_is_dropped(world: World) -> None:
    world.protocol(batch_size=5)
    out = judged(world)
    row = next(line for line in out.splitlines() if line.startswith("FID"))
    assert " 16 " in row, "three batches of five and one more"
    assert "16 images, 4 real ones for 64 features: a biased estimate" in out
    assert PROTOCOL in out
