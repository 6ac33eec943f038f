# SPDX-License-Identifier: Apache-2.0
"""The published folder: determinism, a page that asks for nothing, pictures by rule, and real artefacts."""

from __future__ import annotations

import hashlib
import io
import json
import re
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import publish_example as example  # pyright: ignore[reportMissingImports]
import pyarrow as pa
import pytest
from PIL import Image

from sis.data.image_set import ImageSet, ImageSetMeta, finish_image_set, images_table, write_shard
from sis.data.images import decode_png
from sis.data.manifest import write_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet, pair_row
from sis.data.provenance import RunRecord
from sis.data.schemas import PAIRS, PUBLISHED_SCORES
from sis.data.tables import read_table, write_table
from sis.errors import SisError
from sis.publish.context import DatasetPublish, PublishContext, StageTiming
from sis.publish.gallery import build_gallery, evenly_spaced
from sis.publish.publish import publish, read_scores
from sis.publish.tables import comparison_table
from sis.publish.timings import format_bytes, format_duration, summarise


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    paths = example.write_scores(folder / "scores", example.score_rows(hostile=True))
    publish(paths, folder / "out", example.context())
    return folder


@pytest.fixture(scope="module")
def page(published: Path) -> str:
    return (published / "out" / "leaderboard.html").read_text(encoding="utf-8")


def test_all_files_are_written_and_returned(published: Path) -> None:
    found = sorted(str(p.relative_to(published / "out")) for p in (published / "out").rglob("*") if p.is_file())
    tables = [f"tables/scenes-scenes{part}.{kind}" for part in ("-classes", "") for kind in ("csv", "md", "tex")]
    pictures = ["gallery/scenes-samples.png", "gallery/scenes.png"]
    assert found == sorted([*pictures, *tables, "leaderboard.html", "leaderboard.json", "scores.parquet"])


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_the_files(published: Path, tmp_path: Path) -> None:
    paths = sorted((published / "scores").rglob("*.parquet"), reverse=True)
    for path in publish(paths, tmp_path, example.context()):
        assert path.read_bytes() == (published / "out" / path.relative_to(tmp_path)).read_bytes(), path.name


def test_the_page_allows_only_its_own_style_script_and_pictures(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = policy[1].replace("&#39;", "'")
    assert rules.startswith("default-src 'none';")
    assert "unsafe" not in rules
    assert "img-src data:;" in rules
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"'sha256-{b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in rules


def test_the_page_requests_nothing(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]+\.", re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page))
    links = re.findall(r'\s(?:src|href|srcset|action|poster)="([^"]*)"', page)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"url\(|@import| style=| on[a-z]+=", page)


def test_the_page_is_small_and_has_no_raw_title(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    assert example.HOSTILE not in page
    assert "&lt;script&gt;window.hacked" in page


def test_large_pictures_are_shrunk_until_the_page_is_small(tmp_path: Path) -> None:
    paths = example.write_scores(tmp_path / "scores", example.score_rows() + example.score_rows(dataset="streets"))
    datasets = {name: example.pictures(count=8, size=256) for name in ("scenes", "streets")}
    publish(paths, tmp_path / "out", replace(example.context(), datasets=datasets))
    assert (tmp_path / "out" / "leaderboard.html").stat().st_size < 3_000_000


def test_the_json_holds_the_numbers_of_the_page(published: Path) -> None:
    data = json.loads((published / "out" / "leaderboard.json").read_text(encoding="utf-8"))
    (board,) = data["boards"]
    assert [row["title"] for row in board["rows"]][:2] == ["SDM + categorical prior", "SDM"]
    assert [row["cells"][0]["rank"] for row in board["rows"]][:3] == [1, 1, 3]
    assert [row["badge"] for row in board["rows"] if row["kind"] == "images"] == ["re-evaluated"]
    assert {row["title"] for row in board["rows"] if row["pareto"]} >= {"SDM + categorical prior", "SPADE"}
    assert ["bootstrap.replicates", "400"] in board["shared_facts"]
    assert data["timings"][1]["jobs"] == 6


def test_merged_scores_have_no_replicates_and_are_sorted(published: Path) -> None:
    table = read_table(published / "out" / "scores.parquet", PUBLISHED_SCORES).to_pandas()
    assert len(table) == len(example.score_rows())
    keys = list(zip(table["dataset"], table["role"], table["run_id"], table["metric"], strict=True))
    assert keys == sorted(keys)


def test_repeated_or_absent_score_files_are_refused(published: Path) -> None:
    paths = sorted((published / "scores").rglob("*.parquet"))
    with pytest.raises(SisError, match="same number"):
        read_scores([*paths, paths[0]])
    with pytest.raises(SisError, match="nothing to publish"):
        read_scores([])


def test_label_maps_are_evenly_spaced_over_the_sorted_ids() -> None:
    assert evenly_spaced([f"{i:02d}" for i in range(20)][::-1], 4) == ["02", "07", "12", "17"]
    assert evenly_spaced(["b", "a"], 8) == ["a", "b"]


def test_every_run_shows_the_same_maps_and_the_rule_is_stated() -> None:
    rows = comparison_table(example.frame(example.score_rows())).rows
    source = example.pictures()
    gallery = build_gallery("scenes", source, rows)
    assert gallery is not None
    assert gallery.rule.startswith("8 of 40 label maps, evenly spaced over the sorted image ids; sample 0")
    for strip in gallery.strips:
        expected = [source.image_sets[strip.run_id].get(image_id, 0) for image_id in gallery.ids]
        assert np.array_equal(np.stack(strip.pictures), np.stack(expected))
    assert {len(strip.pictures) for group in gallery.samples for strip in group.strips} == {4}
    assert build_gallery("scenes", replace(source, image_sets={}), rows) is None


def test_label_maps_without_photographs_are_published_without_that_row(tmp_path: Path, published: Path) -> None:
    with_reals = (published / "out" / "leaderboard.html").read_text(encoding="utf-8")
    assert "photograph of scene-" in with_reals and '<th scope="row">real</th>' in with_reals
    context = replace(example.context(), datasets={"scenes": example.pictures(photographs=False)})
    publish(example.write_scores(tmp_path / "scores", example.score_rows()), tmp_path / "out", context)
    page = (tmp_path / "out" / "leaderboard.html").read_text(encoding="utf-8")
    assert "photograph of" not in page and '<th scope="row">real</th>' not in page
    assert "label map scene-" in page
    sheets = [(f / "out" / "gallery" / "scenes.png").read_bytes() for f in (published, tmp_path)]
    widths = [decode_png(sheet).shape[1] for sheet in sheets]
    assert widths[0] - widths[1] == 2 * 64 + 6, "one column less"


def test_small_pictures_are_enlarged_without_smoothing(published: Path) -> None:
    sheet = np.asarray(Image.open(io.BytesIO((published / "out" / "gallery" / "scenes.png").read_bytes())))
    label = example.label_space().palette()[example.label_map(2, 64)]
    enlarged = label.repeat(2, axis=0).repeat(2, axis=1)
    top = sheet.shape[0] - 20 - 8 * (128 + 6)
    left = 20 + 132
    assert np.array_equal(sheet[top : top + 128, left : left + 128], enlarged)


def test_timings_are_added_up_by_stage() -> None:
    stages = summarise(example.timings())
    assert [s.stage for s in stages] == ["prepare", "train", "prior", "sample", "evaluate", "publish"]
    assert stages[1].span_seconds > stages[1].longest_seconds
    assert stages[1].peak_memory_bytes == int(4e8 + 2.4e8 * 5)
    assert [format_duration(s) for s in (0.42, 38.4, 59.7, 185, 7800)] == [
        "0.42 s", "38 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"
    ]  # fmt: skip
    assert [format_bytes(b) for b in (0, 999, 1_640_000_000)] == ["–", "999 B", "1.64 GB"]
    with pytest.raises(SisError, match="ISO 8601"):
        summarise([StageTiming("train", "x", 1.0, "yesterday", "today", 0, "h")])


def test_real_artefacts_are_published(tmp_path: Path) -> None:
    labels = example.label_space()
    ids = ["a", "b", "c"]
    run = RunRecord.start(["test"])
    pairs = [
        Pair(
            n, example.photograph(example.label_map(i, 32), i, 5), example.label_map(i, 32), np.zeros((32, 32), "u2"), n
        )
        for i, n in enumerate(ids)
    ]
    rows = [pair_row(p, p.label.shape) for p in pairs]
    write_table(pa.Table.from_pylist(rows, schema=PAIRS), tmp_path / "pairs" / "shard-0000.parquet", PAIRS)
    facts = {"labels": labels.model_dump(), "size": [32, 32], "dataset": "scenes", "split": "val"}
    facts |= {"prepare": {}, "augmented": False, "edges": False}
    write_manifest(tmp_path / "pairs", "pairs", [tmp_path / "pairs" / "shard-0000.parquet"], facts, run)
    keys = [(name, sample) for name in ids for sample in range(2)]
    images = np.stack([example.photograph(example.label_map(i // 2, 32), i, 20) for i in range(6)])
    write_shard(images_table(keys, images, 0), tmp_path / "images" / "shard-0000.parquet", {})
    meta = ImageSetMeta(
        dataset="scenes", split="val", run="run", run_id="run-00000000", method="method", title="Title", kind="python",
        role="contestant", labels="scenes", size=[32, 32], samples_per_map=2, seed=7, sample_seed=0, batch_size=4,
        device="cpu", threads=1, sampling_seconds=1.5,
    )  # fmt: skip
    finish_image_set(tmp_path / "images", ["shard-0000.parquet"], meta, run, {})
    images_set = ImageSet.open(tmp_path / "images")
    source = DatasetPublish(PairSet.open(tmp_path / "pairs"), {"run-00000000": images_set}, labels)
    paths = example.write_scores(tmp_path / "scores", [example.score()])
    written = publish(paths, tmp_path / "out", PublishContext("e", "T", datasets={"scenes": source}))
    assert tmp_path / "out" / "gallery" / "scenes-samples.png" in written
    data = json.loads((tmp_path / "out" / "leaderboard.json").read_text(encoding="utf-8"))
    assert data["boards"][0]["rows"][0]["facts"]["sampling_seconds"] == 1.5
