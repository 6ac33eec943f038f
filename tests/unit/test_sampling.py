# SPDX-License-Identifier: Apache-2.0
"""Sampling: no cut, order or interruption changes a pixel; folders become image sets and back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sis.data.image_set import ImageSet, pixel_hashes
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.build import build_method
from sis.methods.contract import MapBatch
from sis.plan import RunSpec
from sis.progress import Progress
from sis.sampling.foreign import read_folder
from sis.sampling.ingest import Import, export_pictures, import_folder
from sis.sampling.python_method import batch_maker
from sis.sampling.run import SampleJob, sample_run
from sis.sampling.shards import Cut, Place, all_keys, cut, sample_shard
from sis.training.train import train_model

Spec = Callable[..., RunSpec]


@pytest.fixture
def job(tiny_pairs: Path, tiny_model: Path, tiny_spec: Spec, tmp_path: Path) -> Callable[..., SampleJob]:
    """`job(folder, **changes)`: sampling of the small SDM."""

    def make(folder: str, **changes: Any) -> SampleJob:
        return SampleJob(tiny_spec("sdm"), tiny_pairs / "val", tmp_path / folder, model=tiny_model, **changes)

    return make


@pytest.fixture(scope="session")
def whole(tiny_pairs: Path, tiny_model: Path, tiny_spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small SDM's image set in one shard."""
    folder = tmp_path_factory.mktemp("whole")
    sample_run(SampleJob(tiny_spec("sdm"), tiny_pairs / "val", folder, model=tiny_model, shards=1))
    return folder


@pytest.mark.parametrize("shards", [2, 7])
def test_the_number_of_shards_changes_no_pixel(job: Callable[..., SampleJob], whole: Path, shards: int) -> None:
    sample_run(job("out", shards=shards))
    out = job("out").out
    assert len(list(out.glob("shard-*.parquet"))) == shards
    assert pixel_hashes(out) == pixel_hashes(whole)


def test_shards_made_one_by_one_in_any_order_make_the_same_set(job: Callable[..., SampleJob], whole: Path) -> None:
    assert sample_run(job("out", shards=3, only=[2])) is None
    assert sample_run(job("out", shards=3, only=[0])) is None
    assert not (job("out").out / "manifest.json").exists()
    assert sample_run(job("out", shards=3, only=[1])) is not None
    assert pixel_hashes(job("out").out) == pixel_hashes(whole)


@pytest.mark.parametrize("only", [3, 99])
def test_a_shard_that_does_not_exist_is_refused(job: Callable[..., SampleJob], only: int) -> None:
    with pytest.raises(SisError, match=rf"shard {only} was asked for, there are 3 \(0\.\.2\)"):
        sample_run(job("out", shards=3, only=[only]))


@pytest.mark.parametrize("shards", [33, -1])
def test_an_impossible_number_of_shards_is_refused(job: Callable[..., SampleJob], shards: int) -> None:
    with pytest.raises(SisError, match=f"{shards} shards"):
        sample_run(job("out", shards=shards))


def test_finished_shards_and_batches_are_kept(job: Callable[..., SampleJob], whole: Path) -> None:
    sample_run(job("out", shards=4))
    folder = job("out").out
    os.utime(folder / "shard-0001.parquet", (1, 1))
    (folder / "shard-0002.parquet").unlink()
    sample_run(job("out", shards=4))
    assert (folder / "shard-0001.parquet").stat().st_mtime == 1
    assert pixel_hashes(folder) == pixel_hashes(whole)


def test_a_damaged_shard_is_made_again(job: Callable[..., SampleJob], whole: Path) -> None:
    sample_run(job("out", shards=4))
    shard = job("out").out / "shard-0001.parquet"
    os.truncate(shard, shard.stat().st_size // 2)
    sample_run(job("out", shards=4))
    assert pixel_hashes(job("out").out) == pixel_hashes(whole)


def test_another_trained_model_is_not_mixed_with_finished_shards(
    job: Callable[..., SampleJob], tiny_pairs: Path, tiny_spec: Spec, tmp_path: Path
) -> None:
    sample_run(job("out", shards=2))
    before = pixel_hashes(job("out").out)
    other = tmp_path / "other.safetensors"
    spec = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"learning_rate": 0.01})
    train_model(spec, tiny_pairs / "train", other, "cpu")
    sample_run(SampleJob(tiny_spec("sdm"), tiny_pairs / "val", job("out").out, model=other, shards=2))
    after = pixel_hashes(job("out").out)
    assert set(before) == set(after) and not set(before.values()) & set(after.values())


def test_the_set_says_how_it_was_made(whole: Path, tiny_spec: Spec) -> None:
    images, spec = ImageSet.open(whole), tiny_spec("sdm")
    assert images.rows == 32
    expected = {"dataset": "scenes_tiny", "split": "val", "run_id": spec.run_id, "method": "sdm", "kind": "python",
                "samples_per_map": 2, "batch_size": 4, "size": [32, 32], "role": "contestant"}  # fmt: skip
    assert {k: images.meta[k] for k in expected} == expected
    assert images.meta["sampling_seconds"] > 0
    assert images.run["seeds"] == {"sampling": 0, "training": 0}


def test_a_method_that_trains_needs_its_model(tiny_pairs: Path, tiny_spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(SisError, match="needs a trained model"):
        sample_run(SampleJob(tiny_spec("sdm"), tiny_pairs / "val", tmp_path))


def test_pairs_of_another_split_are_refused(tiny_pairs: Path, tiny_spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"pairs of scenes_tiny/train, the run needs scenes_tiny/val"):
        sample_run(SampleJob(tiny_spec("real"), tiny_pairs / "train", tmp_path))


@pytest.mark.parametrize(("count", "size", "shards", "sizes"), [
    (10, 4, 0, [4, 4, 2]), (10, 100, 0, [10]), (10, 4, 3, [3, 4, 3]), (10, 1, 1, [10]), (10, 5, 10, [1] * 10),
])  # fmt: skip
def test_a_set_is_cut_into_shards_without_loss(count: int, size: int, shards: int, sizes: list[int]) -> None:
    keys = all_keys([f"i{i}" for i in range(count)], 1)
    parts = cut(keys, size, shards, "k")
    assert [len(p.keys) for p in parts] == sizes
    assert [k for p in parts for k in p.keys] == keys
    assert len({p.key for p in parts}) == len(parts)


def test_keys_are_sorted_by_image_and_sample() -> None:
    assert all_keys(["b", "a"], 2) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


class Fake:
    """A method whose output a test chooses."""

    network = None

    def __init__(self, answer: Callable[[MapBatch, Noise], Any]) -> None:
        self.sample = answer


def shard_of(
    answer: Callable[[MapBatch, Noise], Any], pairs: Path, folder: Path, count: int = 7, batch: int = 5
) -> None:
    opened = PairSet.open(pairs / "val")
    keys = [(i, 0) for i in opened.ids[:count]]
    make = batch_maker(Fake(answer), opened, batch, 0, "cpu")  # type: ignore[arg-type]
    with Progress("t", count, "images") as progress:
        part = Cut(0, keys, "k")
        sample_shard(part, Place(folder, opened.size, RunRecord.start()), batch, make, 0, progress)


def test_a_method_always_sees_full_batches(tiny_pairs: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def answer(maps: MapBatch, noise: Noise) -> torch.Tensor:
        assert maps.labels.shape == maps.instances.shape == (5, 32, 32)
        assert noise.keys == tuple(zip(maps.image_ids, maps.sample_indices, strict=True))
        seen.append(maps.image_ids)
        return torch.zeros(5, 3, 32, 32, dtype=torch.uint8)

    shard_of(answer, tiny_pairs, tmp_path)
    ids = [f"val-{i:05d}" for i in range(7)]
    assert seen == [tuple(ids[:5]), (ids[5], ids[6], ids[6], ids[6], ids[6])]


@pytest.mark.parametrize(
    "answer",
    [
        torch.zeros(5, 3, 32, 32),
        torch.zeros(5, 3, 32, 32, dtype=torch.int64),
        torch.zeros(5, 3, 16, 32, dtype=torch.uint8),
        torch.zeros(5, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(5, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(6, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        np.zeros((5, 3, 32, 32), np.uint8),
        None,
    ],
    ids=["float", "int64", "small", "grey", "channels last", "too few", "too many", "no batch", "numpy", "nothing"],
)
def test_anything_but_images_of_the_right_shape_and_type_is_refused(
    tiny_pairs: Path, tmp_path: Path, answer: Any
) -> None:
    with pytest.raises(SisError, match="uint8"):
        shard_of(lambda maps, noise: answer, tiny_pairs, tmp_path)
    assert not (tmp_path / "shard-0000.parquet").exists()


def test_an_interrupted_shard_goes_on_after_its_last_batch(tiny_pairs: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def answer(maps: MapBatch, noise: Noise) -> torch.Tensor:
        calls.append(maps.image_ids[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return noise.integers("x", 0, (3, 32, 32), 256).to(torch.uint8)

    with pytest.raises(KeyboardInterrupt):
        shard_of(answer, tiny_pairs, tmp_path, count=16, batch=4)
    shard_of(answer, tiny_pairs, tmp_path, count=16, batch=4)
    assert calls == ["val-00000", "val-00004", "val-00008", "val-00008", "val-00012"]
    assert not (tmp_path / "work" / "shard-0000").exists()


def test_two_processes_never_write_one_shard(tiny_pairs: Path, tmp_path: Path) -> None:
    def answer(maps: MapBatch, noise: Noise) -> torch.Tensor:
        with pytest.raises(SisError, match="another process is writing this shard"):
            shard_of(lambda *_: None, tiny_pairs, tmp_path)
        return torch.zeros(5, 3, 32, 32, dtype=torch.uint8)

    shard_of(answer, tiny_pairs, tmp_path)


def test_skip_is_a_refusal_with_its_reason(tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from sis.methods.palette import Palette

    monkeypatch.setattr(Palette, "skip", classmethod(lambda cls, dataset: "It has no taste."))
    with pytest.raises(SisError, match="palette cannot run on scenes_tiny: It has no taste"):
        build_method(tiny_spec("palette"), "cpu", None, None)


# Folders of somebody's images


@pytest.fixture
def pictures(tiny_pairs: Path, tmp_path: Path) -> Path:
    """A good folder: one PNG for every label map of val."""
    export_pictures(tiny_pairs / "val", tmp_path / "pictures")
    return tmp_path / "pictures"


def bring(pictures: Path, pairs: Path, **changes: Any) -> Path:
    options = {"name": "mine", "run_id": "mine", "title": "Mine", "method": "mine"} | changes
    out = pictures.parent / "set"
    import_folder(Import(pictures, pairs / "val", out, **options))
    return out


def test_a_folder_becomes_an_image_set_with_the_same_pixels(pictures: Path, tiny_pairs: Path) -> None:
    images, pairs = ImageSet.open(bring(pictures, tiny_pairs)), PairSet.open(tiny_pairs / "val")
    for pair in pairs:
        np.testing.assert_array_equal(images.get(pair.image_id, 0), pair.image)
    assert images.meta["sampling_seconds"] is None and images.meta["kind"] == "images"


def test_export_and_import_are_inverse(whole: Path, tiny_pairs: Path, tmp_path: Path) -> None:
    assert export_pictures(whole, tmp_path / "pictures") == 32
    out = bring(tmp_path / "pictures", tiny_pairs, pattern="{image_id}_{sample:03d}.png", samples_per_map=2)
    assert pixel_hashes(out) == pixel_hashes(whole)


def test_label_and_instance_maps_are_exported_with_their_ids(tiny_pairs: Path, tmp_path: Path) -> None:
    export_pictures(tiny_pairs / "val", tmp_path / "labels", labels=True)
    export_pictures(tiny_pairs / "val", tmp_path / "instances", instances=True)
    pair = PairSet.open(tiny_pairs / "val").get(2)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels" / "val-00002.png")), pair.label)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "instances" / "val-00002.png")), pair.instance)


def test_export_never_writes_into_a_filled_folder(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(SisError, match="not empty"):
        export_pictures(whole, tmp_path)


def test_a_model_cannot_be_exported_as_pictures(tiny_model: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(SisError, match="cannot export this from a model"):
        export_pictures(tiny_model, tmp_path / "out")
    with pytest.raises(SisError, match="cannot export this from a images"):
        export_pictures(whole, tmp_path / "out", labels=True)


def spoil_missing(folder: Path) -> None:
    for i in range(9):
        (folder / f"val-{i:05d}.png").unlink()


def spoil_extra(folder: Path) -> None:
    shutil.copy(folder / "val-00000.png", folder / "stranger.png")


def spoil_size(folder: Path) -> None:
    Image.new("RGB", (16, 32)).save(folder / "val-00003.png")


def spoil_mode(folder: Path) -> None:
    Image.new("RGBA", (32, 32)).save(folder / "val-00003.png")


def spoil_jpeg(folder: Path) -> None:
    Image.new("RGB", (32, 32)).save(folder / "val-00003.png", "JPEG")


def spoil_cut(folder: Path) -> None:
    path = folder / "val-00003.png"
    os.truncate(path, path.stat().st_size // 2)


def spoil_link(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    shutil.move(folder / "val-00003.png", outside)
    (folder / "val-00003.png").symlink_to(outside)


def spoil_directory(folder: Path) -> None:
    (folder / "val-00003.png").unlink()
    (folder / "val-00003.png").mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_missing, r"9 of 16 images are missing: val-00000\.png, .*val-00004\.png and 4 more"),
        (spoil_extra, r"1 images belong to no label map: stranger\.png"),
        (spoil_size, r"image is 32x16, expected 32x32.*val-00003"),
        (spoil_mode, r"PNG of mode RGBA, expected RGB.*val-00003"),
        (spoil_jpeg, r"invalid PNG.*val-00003"),
        (spoil_cut, r"truncated.*val-00003"),
        (spoil_link, r"leads out of its folder.*val-00003"),
        (spoil_directory, r"1 of 16 images are missing: val-00003\.png"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
def test_a_folder_with_a_fault_is_refused(
    pictures: Path, tiny_pairs: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(pictures)
    with pytest.raises(SisError, match=reason):
        bring(pictures, tiny_pairs)
    assert not (pictures.parent / "set" / "manifest.json").exists()


@pytest.mark.parametrize("pattern", ["../{image_id}.png", "sub/../../{image_id}.png"])
def test_a_pattern_cannot_lead_out_of_the_folder(pictures: Path, tiny_pairs: Path, pattern: str) -> None:
    (pictures / "sub").mkdir()
    for path in pictures.glob("*.png"):
        path.rename(pictures.parent / path.name)
    with pytest.raises(SisError, match="leads out of its folder"):
        bring(pictures, tiny_pairs, pattern=pattern)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pattern": "{picture}.png"}, "unknown field {picture}"),
        ({"pattern": "{image_id"}, "pattern|template"),
        ({"pattern": "{image_id}.png", "samples_per_map": 2}, "need {sample}"),
        ({"samples_per_map": 0}, "samples_per_map"),
        ({"run_id": "Not A Name"}, "run_id"),
        ({"name": "../up"}, "run"),
    ],
)
def test_an_import_that_cannot_be_meant_is_refused(
    pictures: Path, tiny_pairs: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SisError, match=reason):
        bring(pictures, tiny_pairs, **changes)


def test_an_absent_folder_is_refused(tiny_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(SisError, match="no such folder"):
        bring(tmp_path / "absent", tiny_pairs)
    with pytest.raises(SisError, match="no such folder"):
        read_folder(tmp_path / "absent", "{image_id}.png", [("a", 0)], (32, 32))
