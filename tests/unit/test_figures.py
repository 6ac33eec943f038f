# SPDX-License-Identifier: Apache-2.0
"""Figures show the pictures that they name, chosen by their rule, and refuse what is not there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sis.cli import main
from sis.data.image_set import ImageSet
from sis.data.images import decode_png
from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.plan import load_plan
from sis.publish import figures
from sis.publish.figures import Choice, comparison, multimodal
from sis.publish.gallery import evenly_spaced
from sis.sampling.run import SampleJob, sample_run

RUNS = ("real", "palette", "segment-noise")


@pytest.fixture(scope="module")
def artefacts(tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts of the tiny experiment: the judged pairs and the image sets of three runs."""
    root = tmp_path_factory.mktemp("artefacts")
    plan = load_plan({"artefacts": str(root)}, experiment="tiny")
    shutil.copytree(tiny_pairs / "val", Path(plan.pairs("scenes_tiny", "val")).parent)
    for run in RUNS:
        spec = plan.spec("scenes_tiny", run)
        sample_run(SampleJob(spec, tiny_pairs / "val", Path(plan.images("scenes_tiny", spec.run_id)).parent))
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the next figure draws: title, caption, heads, names, rows."""
    seen: dict[str, Any] = {}
    own = figures.draw_sheet

    def watch(title: str, caption: str, heads: Sequence[str], names: Sequence[str], rows: Sequence[Any]) -> bytes:
        seen.update(title=title, caption=caption, heads=heads, names=names, rows=rows)
        return own(title, caption, heads, names, rows)

    monkeypatch.setattr(figures, "draw_sheet", watch)
    return seen


def images(artefacts: Path, run: str) -> ImageSet:
    plan = load_plan({"artefacts": str(artefacts)}, experiment="tiny")
    return ImageSet.open(plan.images("scenes_tiny", plan.spec("scenes_tiny", run).run_id))


def choice(artefacts: Path, **changes: Any) -> Choice:
    return dataclasses.replace(Choice("tiny", artefacts=str(artefacts)), **changes)


def test_a_comparison_shows_the_first_sample_of_every_chosen_run(
    artefacts: Path, tiny_pairs: Path, drawn: dict[str, Any], tmp_path: Path
) -> None:
    comparison(choice(artefacts, runs=RUNS, maps=3), tmp_path / "a" / "figure.png")
    pairs = PairSet.open(tiny_pairs / "val")
    titles = ["Real photographs", "Palette", "Segment noise (external program)"]
    assert drawn["heads"] == ["label map", "photograph", *titles]
    assert drawn["names"] == evenly_spaced(pairs.ids, 3) and "evenly spaced" in drawn["caption"]
    for image_id, (label, photograph, *samples) in zip(drawn["names"], drawn["rows"], strict=True):
        pair = pairs.by_id(image_id)
        assert np.array_equal(label, pairs.labels.palette()[pair.label]) and np.array_equal(photograph, pair.image)
        for run, sample in zip(RUNS, samples, strict=True):
            assert np.array_equal(sample, images(artefacts, run).get(image_id, 0))
    assert decode_png((tmp_path / "a" / "figure.png").read_bytes()).shape[0] > 3 * 128


def test_samples_of_one_run_stand_in_the_order_of_their_index(
    artefacts: Path, drawn: dict[str, Any], tmp_path: Path
) -> None:
    chosen = choice(artefacts, runs=("segment-noise",), ids=("val-00004", "val-00001"))
    multimodal(chosen, tmp_path / "figure.png")
    assert drawn["heads"] == ["label map", "photograph", "sample 0", "sample 1"]
    assert drawn["names"] == ["val-00004", "val-00001"] and "chosen by hand" in drawn["caption"]
    for image_id, row in zip(drawn["names"], drawn["rows"], strict=True):
        expected = [images(artefacts, "segment-noise").get(image_id, sample) for sample in (0, 1)]
        assert np.array_equal(row[2:], expected) and not np.array_equal(row[2], row[3])


def test_runs_of_one_title_are_told_apart(artefacts: Path, drawn: dict[str, Any], tmp_path: Path) -> None:
    comparison(choice(artefacts, runs=("palette", "palette"), maps=1), tmp_path / "figure.png")
    assert drawn["heads"][2:] == ["Palette (palette)"] * 2


def test_without_photographs_there_is_no_column_for_them(
    artefacts: Path, drawn: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = PairSet.get
    monkeypatch.setattr(PairSet, "get", lambda self, i: dataclasses.replace(own(self, i), photograph=None))
    comparison(choice(artefacts, runs=("palette",)), tmp_path / "figure.png")
    assert drawn["heads"] == ["label map", "Palette"] and {len(row) for row in drawn["rows"]} == {2}


@pytest.mark.parametrize(
    ("draw", "changes", "reason"),
    [
        (multimodal, {"runs": ("palette",)}, "drew 1 sample a label map, this figure needs 2"),
        (multimodal, {"runs": ("segment-noise",), "samples": 3}, "drew 2 samples a label map, this figure needs 3"),
        (multimodal, {}, "shows one run .*give --run: sdm-s1.5, sdm-s1.0"),
        (multimodal, {"runs": ("palete",)}, "did you mean 'palette'"),
        (comparison, {}, "no such artefact"),
        (comparison, {"runs": ("palette",), "dataset": "scenes"}, "did you mean 'scenes_tiny'"),
        (
            comparison,
            {"runs": ("palette",), "ids": ("val-0001",)},
            "no image 'val-0001' in scenes_tiny/val - did you mean",
        ),
        (comparison, {"runs": ("palette",), "maps": 0}, "at least one label map"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(
    draw: Any, changes: dict[str, Any], reason: str, artefacts: Path, tmp_path: Path
) -> None:
    with pytest.raises(SisError, match=reason):
        draw(choice(artefacts, **changes), tmp_path / "out" / "figure.png")
    assert not (tmp_path / "out").exists()


def test_several_datasets_need_a_choice(project_copy: Path, tmp_path: Path) -> None:
    path = project_copy / "config" / "experiments" / "tiny.yaml"
    text = path.read_text().replace("datasets:\n", "datasets:\n  scenes: {protocol: scenes}\n")
    path.write_text(text)
    with pytest.raises(SisError, match="has 2 datasets - give --dataset: scenes, scenes_tiny"):
        comparison(Choice("tiny"), tmp_path / "figure.png")


def test_the_commands_draw_and_name_their_file(
    artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--experiment", "tiny", "--artefacts", str(artefacts), "--out", str(tmp_path / "figure.png")]
    for words in (
        ["figure", "comparison", "--run", "real", "--run", "palette", "--ids", "val-00001", "val-00002"],
        ["figure", "multimodal", "--run", "segment-noise", "--samples", "2", "--maps", "1"],
    ):
        assert main([*words, *where]) == 0
        assert capsys.readouterr().out == f"wrote {tmp_path / 'figure.png'}\n"
    assert main(["figure", "multimodal", "--run", "real", *where]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: run real drew 1 sample") and err.count("\n") == 1
