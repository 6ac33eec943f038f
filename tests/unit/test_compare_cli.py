# SPDX-License-Identifier: Apache-2.0
"""The commands compare, gallery and per-image, from arguments to files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from measured_sets import CARD, LABELS, ROOT, correlated, digests, write_images, write_pairs, write_reference, write_set
from numpy.typing import NDArray

from evaluators import compare_cli
from evaluators.compare import Comparison, Row, Side
from evaluators.networks import Networks
from sis.config.protocols import NetworkRecord
from sis.config.strict_yaml import load_yaml
from sis.data.images import decode_png
from sis.errors import SisError

MAPS = 12


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    compare_cli.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args([str(a) for a in arguments])
    parsed.command(parsed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two measured sets with their pictures and a protocol card."""
    folder = tmp_path_factory.mktemp("root")
    pairs = write_pairs(folder / "pairs", MAPS)
    for name, seed, right in zip("ab", (1, 2), correlated(MAPS, 0, 0.2, 0.15), strict=True):
        images = write_images(folder / f"images-{name}", MAPS, seed=seed, title=f"Set {name}")
        write_set(folder / name, right, seed, f"Set{name}", **digests(images, pairs))
    write_reference(folder / "reference", pairs_sha256="r" * 64)
    data, _ = load_yaml(ROOT / "config" / "protocols" / "scenes-tiny.yaml")
    data |= {"name": "card", "bootstrap": {"replicates": 200, "seed": 20}, "metrics": CARD.metrics}
    (folder / "card.yaml").write_text(json.dumps(data))
    return folder


def test_a_comparison_is_printed_and_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["compare", root / "a", root / "b" / "manifest.json", "--protocol", root / "card.yaml"]
    run(*sets, "--reference", root / "reference", "--classes", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[:2] == ["A  Seta (seta-0001)", "B  Setb (setb-0002)"]
    assert lines[2] == "Scenes tiny: 12 label maps, 200 paired bootstrap replicates"
    (miou,) = (line for line in lines if line.startswith("miou (%)"))
    assert miou.split()[2] > miou.split()[3] and miou.endswith("A better")
    assert "corrected for 5 metrics" in printed and "corrected for 10 classes" in printed
    assert "200 replicates can show no difference among 10: give --replicates 400" in printed
    written = Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    assert f"{written.rows[0].a:.1f}" in miou
    assert (tmp_path / "out" / "comparison.parquet").is_file()


def test_more_replicates_resolve_smaller_p_values(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["compare", root / "a", root / "b", "--protocol", root / "card.yaml", "--metrics", "miou", "--classes"]
    run(*sets, "--replicates", "450")
    printed = capsys.readouterr().out
    assert "450 paired bootstrap replicates" in printed and "can show no difference" not in printed


def test_a_gallery_of_wins_and_losses_names_both_sets(root: Path, tmp_path: Path) -> None:
    sets = ["compare", root / "a", root / "b", "--protocol", root / "card.yaml", "--metrics", "accuracy"]
    pictures = ["--images", root / "images-a", root / "images-b", "--pairs", root / "pairs", "--shown", "2"]
    run(*sets, *pictures, "--by", "accuracy", "--gallery", tmp_path / "wins.html")
    page = (tmp_path / "wins.html").read_text()
    assert page.count("<article>") == 4 and "Set a against Set b: accuracy" in page
    with pytest.raises(SisError, match="give --images A B and --pairs"):
        run(*sets, "--gallery", tmp_path / "wins.html")
    with pytest.raises(SisError, match="measured on other images"):
        run(*sets, *pictures[:1], root / "images-b", root / "images-a", *pictures[3:], "--gallery", tmp_path / "x.html")
    with pytest.raises(SisError, match=r"fd never compares single images of two sets - choose: miou, accuracy, lpips"):
        run(*sets, *pictures, "--by", "fd", "--gallery", tmp_path / "x.html")


def test_a_gallery_shows_the_worst_and_the_best(root: Path, tmp_path: Path) -> None:
    one = ["gallery", root / "images-a", "--pairs", root / "pairs", "--partials", root / "a"]
    one += ["--protocol", root / "card.yaml", "--reference", root / "reference"]
    for metric in ("miou", "fd", "ms_ssim"):
        out = tmp_path / f"{metric}.png"
        run(*one, "--metric", metric, "--worst", "2", "--best", "1", "--out", out)
        assert decode_png(out.read_bytes()).shape[0] > 3 * 128
    with pytest.raises(SisError, match="throughput never says anything of single images - choose: miou, accuracy, fd"):
        run(*one, "--metric", "throughput", "--out", tmp_path / "x.png")
    with pytest.raises(SisError, match="shows one image or more"):
        run(*one, "--worst", "0", "--best", "0", "--out", tmp_path / "x.png")


def test_values_of_single_images_are_a_tidy_table(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "values.parquet"
    run("per-image", root / "a", "--protocol", root / "card.yaml", "--reference", root / "reference", "--out", out)
    rows = pq.read_table(out).to_pylist()
    names = ["miou", "accuracy", "fd-scenes-segmenter", "lpips-alex[stand-in:seeded]", "ms-ssim"]
    assert list(dict.fromkeys(row["metric"] for row in rows)) == names
    assert len(rows) == 5 * MAPS and all(row["value"] is not None for row in rows)
    assert {row["sample_index"] for row in rows if row["metric"] == "ms-ssim"} == {None}
    assert {row["sample_index"] for row in rows if row["metric"] == "miou"} == {0}
    with pytest.raises(SisError, match="no metric says anything of single images here"):
        run("per-image", root / "a", "--protocol", root / "card.yaml", "--metrics", "throughput", "--out", out)


def test_numbers_are_printed_with_the_digits_that_their_intervals_justify() -> None:
    side = Side(run="a", run_id="a-1", method="m", title="A", seed=0, images_sha256="same")
    row = Row(metric="miou", class_name="", unit="%", direction="higher", protocol_id="0", stand_in="")
    wide = row.model_copy(update={"a": 40.123, "b": 30.0, "difference": 10.123, "low": 4.0, "high": 16.0})
    none = row.model_copy(update={"metric": "speed", "unit": "", "a": 0.01234, "b": 0.02, "difference": -1e-9})
    told = {"protocol": "p", "title": "P", "label_maps": 3, "replicates": 9, "bootstrap_seed": 0, "level": 0.05}
    found = Comparison(**told, a=side, b=side, rows=[wide, none])
    lines = compare_cli.spelled(found).splitlines()
    assert "A and B hold the same images" in lines
    assert lines[-2].split() == ["miou", "(%)", "40.1", "30.0", "+10.1", "+4.0", "..", "+16.0", "undefined"]
    assert lines[-1].split() == ["speed", "0.01234", "0.02000", "0.00000", "undefined"]


@pytest.mark.parametrize("option", ["--replicates", "--shown"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("compare", "a", "b", "--protocol", "p", option, "0")
    assert "a number from 1 on, found '0'" in capsys.readouterr().err


def test_answers_come_from_the_segmenter_that_judged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ["gallery", root / "images-a", "--pairs", root / "pairs", "--partials", root / "a", "--worst", "1"]
    one += ["--protocol", root / "card.yaml", "--out", tmp_path / "x.html", "--answers"]
    with pytest.raises(SisError, match="the segmenter scenes_unet is trained here - give --segmenter"):
        run(*one)

    def everywhere(images: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], None]:
        return np.full((len(images), *size), 9, np.uint8), None

    monkeypatch.setattr(Networks, "record", lambda *_: (NetworkRecord(name="trained", sha256="aa"), ""))
    monkeypatch.setattr(Networks, "load", lambda *_: everywhere)
    run(*one)
    assert f"</i>{LABELS.classes[9].name}</li>" in (tmp_path / "x.html").read_text()
    monkeypatch.setattr(Networks, "record", lambda *_: (NetworkRecord(name="trained", sha256="bb"), ""))
    with pytest.raises(SisError, match="this segmenter is not the one that judged"):
        run(*one)
