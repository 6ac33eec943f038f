# SPDX-License-Identifier: Apache-2.0
"""Image sets: the one artefact between making images and judging them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sis.data.image_set import (
    ImageSet,
    ImageSetMeta,
    finish_image_set,
    images_table,
    pixel_hashes,
    shard_is_good,
    shard_name,
    write_shard,
)
from sis.data.images import pixel_sha256
from sis.data.provenance import RunRecord
from sis.data.verify import verify_all
from sis.errors import SisError

KEYS = [(f"val-{i:03d}", s) for i in range(6) for s in range(2)]
IMAGES = np.random.default_rng(0).integers(0, 256, (len(KEYS), 16, 24, 3), dtype=np.uint8)
META = ImageSetMeta(
    dataset="d", split="val", run="r", run_id="r-12345678", method="m", title="M", kind="images", role="contestant",
    labels="scenes", size=[16, 24], samples_per_map=2, seed=0, sample_seed=0, batch_size=1, device="cpu", threads=1,
    sampling_seconds=None,
)  # fmt: skip


def write(folder: Path, cuts: list[int], keys: list[tuple[str, int]] = KEYS) -> list[str]:
    """Write shards that end at `cuts`; returns their names."""
    names = []
    for number, (a, b) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
        names.append(shard_name(number))
        write_shard(images_table(keys[a:b], IMAGES[a:b], seed=3), folder / names[-1], {"key": f"k:{a}-{b}"})
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "set"
    finish_image_set(place, write(place, [5, 12]), META, RunRecord.start(), {"note": "x"})
    return place


def test_every_image_comes_back_in_order(folder: Path) -> None:
    images = ImageSet.open(folder)
    assert images.rows == 12 and images.keys() == KEYS
    batches = list(images.iter_batches(4))
    assert [key for b in batches for key in zip(b.image_ids, b.sample_indices, strict=True)] == KEYS
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches]), IMAGES)
    np.testing.assert_array_equal(images.get("val-003", 1), IMAGES[7])


def test_the_size_of_reading_batches_changes_nothing(folder: Path) -> None:
    sets = [np.concatenate([b.images for b in ImageSet.open(folder).iter_batches(n)]) for n in (1, 3, 100)]
    assert all(np.array_equal(s, IMAGES) for s in sets)


def test_the_manifest_says_what_the_set_is(folder: Path) -> None:
    images = ImageSet.open(folder)
    assert {k: images.meta[k] for k in META.model_dump()} == META.model_dump()
    assert images.meta["rows"] == 12 and images.meta["note"] == "x"
    assert images.run["host"]


def test_pandas_and_arrow_read_a_shard_without_us(folder: Path) -> None:
    table = pd.read_parquet(folder / "shard-0000.parquet")
    assert table["image_id"].tolist() == [k for k, _ in KEYS[:5]]
    assert table["image"][0]["bytes"].startswith(b"\x89PNG") and table["image"][0]["path"] == "val-000_000.png"
    assert table["seed"].tolist() == [3] * 5
    assert pq.read_table(folder / "shard-0001.parquet").num_rows == 7


def test_recorded_hashes_are_those_of_the_pixels(folder: Path) -> None:
    expected = {key: pixel_sha256(image) for key, image in zip(KEYS, IMAGES, strict=True)}
    assert pixel_hashes(folder) == expected


def test_an_unknown_image_is_refused(folder: Path) -> None:
    with pytest.raises(SisError, match="no sample 2 of image 'val-000'"):
        ImageSet.open(folder).get("val-000", 2)


def test_duplicate_images_are_refused(tmp_path: Path) -> None:
    names = write(tmp_path, [5, 12], [*KEYS[:-1], KEYS[0]])
    with pytest.raises(SisError, match=r"duplicate images: \('val-000', 0\)"):
        finish_image_set(tmp_path, names, META, RunRecord.start(), {})
    assert not (tmp_path / "manifest.json").exists()


def test_shards_of_an_earlier_cut_are_removed(tmp_path: Path) -> None:
    write(tmp_path, [3, 6, 12])
    finish_image_set(tmp_path, write(tmp_path, [12]), META, RunRecord.start(), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shard-0000.parquet"]
    assert ImageSet.open(tmp_path).rows == 12


def test_a_shard_is_good_only_for_its_own_run(folder: Path) -> None:
    path = folder / "shard-0000.parquet"
    assert shard_is_good(path, "k:0-5")
    assert not shard_is_good(path, "other:0-5")
    assert not shard_is_good(folder / "shard-0009.parquet", "k:0-5")
    path.write_bytes(path.read_bytes()[:-9])
    assert not shard_is_good(path, "k:0-5")


def test_pixels_that_differ_from_their_hash_are_found_even_under_a_fresh_manifest(tmp_path: Path) -> None:
    rows = images_table(KEYS, IMAGES, 0).to_pylist()
    rows[4]["image"], rows[5]["image"] = rows[5]["image"], rows[4]["image"]
    table = images_table(KEYS, IMAGES, 0)
    swapped = table.from_pylist(rows, schema=table.schema)
    write_shard(swapped, tmp_path / "shard-0000.parquet", {"key": "k"})
    assert not shard_is_good(tmp_path / "shard-0000.parquet", "k")
    finish_image_set(tmp_path, ["shard-0000.parquet"], META, RunRecord.start(), {})
    with pytest.raises(SisError, match=r"pixels differ from their recorded hash.*val-002 sample 0"):
        list(ImageSet.open(tmp_path).iter_batches(5))
    with pytest.raises(SisError, match="pixels differ"):
        list(verify_all([tmp_path]))


def test_verify_lists_every_whole_artefact_below_a_folder(folder: Path, tiny_pairs: Path) -> None:
    found = [(path.name, m.artefact) for path, m in verify_all([folder, tiny_pairs])]
    # Whether a test before this one left a training cache beside the pairs is a matter of their order.
    assert [kind for _, kind in found if kind != "decoded"] == ["images", "pairs", "pairs"]
    assert {name for name, _ in found} == {"manifest.json"}


def test_verify_refuses_folders_without_artefacts(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="no artefact here"):
        list(verify_all([tmp_path]))
    with pytest.raises(SisError, match="no such file or folder"):
        list(verify_all([tmp_path / "absent"]))
