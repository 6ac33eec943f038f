# SPDX-License-Identifier: Apache-2.0
"""`sis eval` and bad folders: one line, exit code 2, nothing written; and folders that only look bad."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_folders import BAD, Spoil, brightened, png

from sis.cli import main
from sis.data.image_set import ImageSet, pixel_hashes
from sis.data.images import encode_png
from sis.data.manifest import read_manifest, write_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.errors import SisError
from sis.evaluation import evaluate as stage
from sis.plan import load_plan
from sis.sampling import pictures as survey

pytestmark = pytest.mark.faults


class WorkflowStartedError(Exception):
    """The folder passed: the workflow would run now."""


@dataclass(frozen=True)
class Eval:
    """A project with prepared pairs, a good folder, and the command."""

    project: Path
    folder: Path
    command: Callable[..., tuple[int, str]]

    def refused(self, *more: object, folder: Path | None = None) -> str:
        """The one line of a refusal that left nothing behind."""
        before = self.files()
        code, err = self.command(folder or self.folder, *more)
        # Copies are found once all is decoded, after the line that tells how far that was.
        lines = [line for line in err.splitlines() if not line.startswith("import ")]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
        assert err.splitlines()[-1] == lines[0] and self.files() == before
        return lines[0]

    def files(self) -> set[Path]:
        return {p for part in ("artefacts", "results", "logs") for p in (self.project / part).rglob("*") if p.is_file()}

    def accepted(self, *more: object, folder: Path | None = None) -> ImageSet:
        """The image set of a folder that passed."""
        with pytest.raises(WorkflowStartedError):
            self.command(folder or self.folder, *more)
        plan = load_plan(experiment=sorted((self.project / "artefacts/eval/experiments").glob("*"))[-1].stem)
        return ImageSet.open(self.project / plan.images("scenes_tiny", plan.runs[0].run_id))


@pytest.fixture
def good(
    project_copy: Path, tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Eval]:  # fmt: skip
    shutil.copytree(tiny_pairs, project_copy / "artefacts/pairs/scenes_tiny")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for pair in PairSet.open(tiny_pairs / "val"):
        (folder / f"{pair.image_id}.png").write_bytes(encode_png(brightened(pair.image)))

    def start(*_: object) -> None:
        raise WorkflowStartedError

    monkeypatch.setattr(stage, "run_workflow", start)

    def command(source: Path, *more: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["eval", *map(str, more), "--dataset", "scenes_tiny", "--", str(source)])
        return code, capsys.readouterr().err

    yield Eval(project_copy, folder, command)


@pytest.mark.parametrize(("spoil", "more", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_refused_in_one_line(good: Eval, spoil: Spoil, more: list[str], words: list[str]) -> None:
    spoil(good.folder)
    line = good.refused(*more)
    for word in words:
        assert word.replace("{folder}", str(good.folder)) in line


def test_a_file_that_cannot_be_read_is_named(good: Eval, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's answer is played."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == png(4):
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    line = good.refused()
    assert "cannot read this file: Permission denied" in line and png(4) in line and "check its permissions" in line


def test_a_folder_that_cannot_be_listed_is_named(good: Eval, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    code, err = good.command(good.folder)
    assert code == 2 and "cannot list this folder: Permission denied" in err and str(good.folder) in err


def test_a_file_of_absurd_length_is_refused_unread(good: Eval, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_BYTES", 5_000_000)
    os.truncate(good.folder / png(4), 5_000_001)
    assert "over 5 MB" in good.refused()


def test_ground_truth_is_refused_as_a_result(good: Eval, tiny_pairs: Path) -> None:
    for pair in PairSet.open(tiny_pairs / "val"):
        (good.folder / f"{pair.image_id}.png").write_bytes(encode_png(pair.image))
    line = good.refused()
    assert "16 of 16 images are the real photographs of the split themselves: val-00000 = val-00000" in line
    assert "the control `real` scores the photographs" in line


def test_ground_truth_in_another_order_is_refused_too(good: Eval, tiny_pairs: Path) -> None:
    pairs = list(PairSet.open(tiny_pairs / "val"))
    for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
        (good.folder / f"{pair.image_id}.png").write_bytes(encode_png(other.image))
    assert "16 of 16 images are the real photographs" in good.refused() and "val-00000 = val-00001" in good.refused()


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("val", "1 of 16 images are photographs of the judged split: val-00003 = val-00003"),
        ("train", "1 of 16 images are training photographs: val-00003 = train-00003"),
    ],
)
def test_a_single_leak_is_reported_and_recorded(good: Eval, tiny_pairs: Path, split: str, words: str) -> None:
    leak = PairSet.open(tiny_pairs / split).get(3)
    (good.folder / png(3)).write_bytes(encode_png(leak.image))
    images = good.accepted()
    recorded = images.meta.get("copies")
    assert recorded == ({"truth": 1} if split == "val" else None), "training photographs are looked at in evaluation"
    assert words in _warnings(good, images)


def test_a_single_copy_is_reported_and_recorded(good: Eval) -> None:
    shutil.copy(good.folder / png(0), good.folder / png(1))
    images = good.accepted()
    assert images.meta["copies"] == {"within": 1}
    words = "1 of 16 images show the very pixels of another label map's picture: val-00001 = val-00000"
    assert words in _warnings(good, images)


def _warnings(good: Eval, images: ImageSet) -> list[str]:
    from sis.evaluation.judged import look_for_copies

    plan = load_plan()
    return look_for_copies(plan, images, load_plan(experiment="tiny").protocol("scenes-tiny"), good.folder).badges()


def test_a_retrieval_of_training_photographs_is_no_refusal(good: Eval, tiny_pairs: Path) -> None:
    train = PairSet.open(tiny_pairs / "train")
    for i in range(16):
        (good.folder / png(i)).write_bytes(encode_png(train.get(i).image))
    assert len(_warnings(good, good.accepted())) == 1


@pytest.mark.parametrize("name", ["my pictures", "-rf", "new\nline", "ünï cödé", "a'b\"c$(x)", "{image_id}"])
def test_the_folder_may_have_any_name(good: Eval, name: str) -> None:
    folder = good.folder.rename(good.folder.parent / name)
    images = good.accepted(folder=folder)
    assert images.rows == 16 and images.meta["run"].isascii()


@pytest.mark.parametrize(
    ("written", "pattern", "samples"),
    [
        ("{i}_{k}.png", "", 2),
        ("{i}_{k:03d}.png", "", 2),
        ("{k}/{i}.png", "", 2),
        ("{i}/sample {k}.png", "", 2),
        ("city/{i}_leftImg8bit.png", "", 1),
        ("a b/-{i}.png", "a b/-{image_id}.png", 1),
        ("{i}.jpg", "", 1),
        (".{i}.png", ".{image_id}.png", 0),
    ],
)
def test_usual_names_are_found_out(good: Eval, tmp_path: Path, written: str, pattern: str, samples: int) -> None:
    """PNGs by any name: the content decides, not the suffix. Hidden files are not looked at."""
    other = tmp_path / "other"
    for path in good.folder.glob("*.png"):
        for k in range(max(1, samples)):
            to = other / written.format(i=path.stem, k=k)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    more = ["--pattern", pattern] if pattern else []
    if not samples:
        assert "the folder of images is empty" in good.refused(*more, folder=other)
        return
    images = good.accepted(*more, folder=other)
    assert images.rows == 16 * samples and images.meta["samples_per_map"] == samples


def test_files_beside_the_pictures_are_passed_over(good: Eval) -> None:
    plain = pixel_hashes(good.accepted().manifest.folder)
    for name in ("metrics.json", "README.md", ".DS_Store", "._val-00000.png"):
        (good.folder / name).write_text("x")
    (good.folder / "labels").mkdir()
    shutil.copy(good.folder / png(0), good.folder / "labels" / png(0))
    assert pixel_hashes(good.accepted().manifest.folder) == plain


def test_the_same_files_elsewhere_are_the_same_set_and_other_pixels_another(good: Eval) -> None:
    first = good.accepted("--name", "mine")
    made = first.manifest.paths()[0].stat().st_mtime_ns
    again = good.accepted("--name", "mine", folder=good.folder.rename(good.folder.parent / "moved"))
    assert again.manifest.folder == first.manifest.folder and again.manifest.paths()[0].stat().st_mtime_ns == made
    moved = good.folder.parent / "moved"
    pixels = brightened(PairSet.open(good.project / "artefacts/pairs/scenes_tiny/val").get(3).image)
    (moved / png(3)).write_bytes(encode_png(brightened(pixels)))
    with pytest.raises(WorkflowStartedError):
        good.command(moved, "--name", "mine")
    assert len(list((good.project / "artefacts/images/scenes_tiny").glob("mine-*"))) == 2


def test_an_image_changed_after_ingestion_is_found(good: Eval, capsys: pytest.CaptureFixture[str]) -> None:
    images = good.accepted()
    shard = images.manifest.paths()[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 4]) + whole[501:])
    assert main(["verify", str(images.manifest.folder)]) == 2
    assert "file content changed" in capsys.readouterr().err
    line = good.refused(folder=images.manifest.folder)
    assert "file content changed" in line and shard.name in line
    assert pixel_hashes(good.accepted().manifest.folder), "the folder is still there: its set is made again"
    assert shard.read_bytes() != whole[:500] + bytes([whole[500] ^ 4]) + whole[501:]


def test_pixels_changed_under_a_fresh_manifest_are_found(good: Eval, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody who writes a new manifest still cannot change a pixel: its hash lies beside it."""
    import pyarrow.parquet as pq

    from sis.data.schemas import IMAGES
    from sis.data.tables import write_table

    images = good.accepted()
    shard = images.manifest.paths()[0]
    rows = pq.read_table(shard).to_pylist()
    rows[0]["image"]["bytes"] = rows[1]["image"]["bytes"]
    table = pq.read_table(shard).from_pylist(rows, schema=IMAGES)
    write_table(table, shard, IMAGES, {})
    manifest = read_manifest(images.manifest.folder, verify=False)
    write_manifest(manifest.folder, "images", [shard], manifest.meta, RunRecord.start())
    assert main(["verify", str(manifest.folder)]) == 2
    assert "pixels differ from their recorded hash" in capsys.readouterr().err
    with pytest.raises(SisError, match="pixels differ from their recorded hash"):
        list(ImageSet.open(manifest.folder).iter_batches(4))


def test_an_artefact_of_another_kind_is_no_image_set(good: Eval) -> None:
    line = good.refused(folder=good.project / "artefacts/pairs/scenes_tiny/val")
    assert "this is a pairs artefact, expected images" in line


def test_a_set_of_another_split_is_refused(good: Eval) -> None:
    images = good.accepted()
    copy = good.folder.parent / "copy"
    shutil.copytree(images.manifest.folder, copy)
    write_manifest(copy, "images", list(copy.glob("*.parquet")), {**images.meta, "split": "train"}, RunRecord.start())
    assert "this image set is of scenes_tiny/train, protocol scenes-tiny judges scenes_tiny/val" in good.refused(
        folder=copy
    )


def test_nothing_is_left_of_a_folder_whose_last_picture_is_bad(good: Eval, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that changes between the survey and its decoding, after shards were written."""
    from sis.sampling import ingest

    monkeypatch.setattr(ingest, "SHARD_SIZE", 5)
    decode = ingest.images_table

    def spoil(keys: list[tuple[str, int]], images: object, seed: int) -> object:
        (good.folder / png(15)).write_bytes(b"")
        return decode(keys, images, seed)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ingest, "images_table", spoil)
    code, err = good.command(good.folder)
    assert code == 2 and "invalid PNG: empty file" in err.splitlines()[-1]
    assert not list((good.project / "artefacts/images").rglob("*.parquet"))


def test_one_image_is_too_few(good: Eval) -> None:
    pairs = good.project / "artefacts/pairs/scenes_tiny/val"
    card = good.project / "config/datasets/scenes_tiny.yaml"
    card.write_text(card.read_text().replace("val: {count: 16}", "val: {count: 1}"))
    shutil.rmtree(pairs)
    assert main(["prepare", "--dataset", "scenes_tiny", "--split", "val", "--out", str(pairs)]) == 0
    for i in range(1, 16):
        (good.folder / png(i)).unlink()
    code, err = good.command(good.folder)
    assert code == 2 and "1 image is too few: a distribution needs two" in err.splitlines()[-1]


def test_the_experiment_of_a_folder_is_data(good: Eval) -> None:
    good.accepted("--title", "Mine: <b>#1</b>")
    (path,) = (good.project / "artefacts/eval/experiments").glob("*.yaml")
    assert json.dumps("Mine: <b>#1</b>")[1:-1] in path.read_text()
    assert load_plan(experiment=path.stem).runs[0].title == "Mine: <b>#1</b>"


def test_a_card_of_kind_images_meets_the_same_checks(good: Eval, tiny_pairs: Path) -> None:
    """What `sis eval` refuses, an experiment with a method card refuses as well."""
    card = f"kind: images\ntitle: Handed in\npath: {good.folder}\n"
    (good.project / "config/methods/handed_in.yaml").write_text(card)
    runs = "runs: {handed-in: {method: handed_in}}\nbatch_size: 4\nshard_size: 8\n"
    head = "name: handed\ntitle: Handed in\ndatasets: {scenes_tiny: {protocol: scenes-tiny}}\n"
    (good.project / "config/experiments/handed.yaml").write_text(head + runs)
    pairs, out = tiny_pairs / "val", good.project / "out"
    words = ["sample", "--experiment", "handed", "--dataset", "scenes_tiny", "--run", "handed-in"]
    sample = [*words, "--device", "cpu", "--pairs", str(pairs), "--out", str(out)]
    (good.folder / png(15)).write_bytes(b"")
    assert main(sample) == 2 and not list(out.rglob("*.parquet")), "the last file of the last shard"
    for pair in PairSet.open(pairs):
        (good.folder / f"{pair.image_id}.png").write_bytes(encode_png(pair.image))
    assert main(sample) == 2 and not (out / "manifest.json").exists()
    (good.project / "config/methods/handed_in.yaml").write_text(card + "role: control\n")
    assert main(sample) == 0
    assert ImageSet.open(out).meta["copies"] == {"truth": 16}
