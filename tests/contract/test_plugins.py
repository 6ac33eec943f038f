# SPDX-License-Identifier: Apache-2.0
"""Every plug-in keeps its contract: the very functions that `sis check` runs, over everything that is discovered."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import pytest

from evaluators.check import check_metric
from evaluators.discovery import find_metric, find_segmenter, stems
from sis.config.cards import DatasetCard
from sis.config.files import dataset_card, label_space, project_root
from sis.data.layouts import Entry, layout_module
from sis.data.pair import Pair
from sis.errors import SisError
from sis.methods.discovery import methods
from sis.project import check as project_check
from sis.project.check import check, check_dataset, check_method

METHODS = methods()
DATASETS = sorted(p.stem for p in (project_root() / "config" / "datasets").glob("*.yaml"))
#: Drawn here in a moment; larger ones are prepared by their own rule.
SMALL = [name for name in DATASETS if sum(s.count for s in dataset_card(name).splits.values()) <= 200]
BUILT_IN = [name for name in SMALL if dataset_card(name).layout == "scenes"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_its_contract(name: str) -> None:
    clauses = list(check_method(METHODS[name]))
    least = {"python": 8, "command": 5, "images": 1, "rule": 1}
    assert len(clauses) >= (4 if METHODS[name].is_part else least[METHODS[name].kind])


@pytest.mark.parametrize("name", SMALL)
def test_every_small_dataset_keeps_its_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in BUILT_IN:
        mini = miniatures.write(name.removesuffix("_mini"), tmp_path / "raw")
        monkeypatch.setattr(project_check, "dataset_root", lambda card, site: mini.root)
    clauses = list(check_dataset(name))
    assert clauses[-1] == "no image is in two splits"
    assert sum(c.endswith("all prepared twice, equal bytes") for c in clauses) == len(dataset_card(name).splits)


def test_of_a_large_dataset_some_pairs_are_prepared_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini = miniatures.write("ade20k", tmp_path / "raw")
    monkeypatch.setattr(project_check, "dataset_root", lambda card, site: mini.root)
    monkeypatch.setattr(project_check, "_SMALL", 0)
    monkeypatch.setattr(project_check, "_SOME", 3)
    assert "train: 3 pairs prepared twice, equal bytes" in list(check_dataset("ade20k_mini"))


def test_a_dataset_whose_raw_files_are_not_here_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_check, "dataset_root", lambda card, site: tmp_path / "nowhere")
    with pytest.raises(SisError, match=r"no folder with the raw files of ade20k_mini \[.*nowhere\]"):
        list(check_dataset("ade20k_mini"))


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_card_names_a_layout_and_a_label_table(name: str, tmp_path: Path) -> None:
    card = dataset_card(name)
    layout = layout_module(card)
    assert callable(layout.entries) and callable(layout.read)
    assert label_space(card.labels).evaluated_ids
    assert (layout.__doc__ or "").strip()
    if card.layout == "scenes":
        for split, wanted in card.splits.items():
            ids = [entry.image_id for entry in layout.entries(card, split, tmp_path)]
            assert len(ids) == wanted.count and ids == sorted(set(ids))


@pytest.mark.parametrize("name", stems("metrics"))
def test_every_metric_keeps_its_contract(name: str) -> None:
    clauses = list(check_metric(name))
    least = 3 if find_metric(name).parts else 5
    assert len(clauses) >= least and len(set(clauses)) == len(clauses)


@pytest.mark.parametrize("name", stems("segmenters"))
def test_every_segmenter_can_be_trained_and_loaded(name: str) -> None:
    module = find_segmenter(name)
    trained_here = hasattr(module, "NAME")
    assert callable(module.load) and hasattr(module, "train") == trained_here
    if not trained_here:
        assert module.TITLE and module.VERSION >= 1


# A contract that nothing can break is none.


def broken(monkeypatch: pytest.MonkeyPatch, stem: str, **changes: Any) -> None:
    module = importlib.import_module(f"evaluators.metrics.{stem}")
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value, raising=False)


@pytest.mark.parametrize(
    ("stem", "changes", "reason"),
    [
        ("miou", {"DIRECTION": "up"}, "senseless DIRECTION"),
        ("miou", {"DIRECTION": "lower"}, "the better images scored"),
        ("miou", {"RANGE": (0.0, 1.0)}, r"outside 0\.0\.\.1\.0"),
        ("miou", {"RANGE": (1.0, 0.0)}, "senseless RANGE"),
        ("miou", {"NEEDS": "everything"}, "senseless NEEDS"),
        ("miou", {"VERSION": 0}, "senseless VERSION"),
        ("miou", {"TITLE": ""}, "senseless TITLE"),
        ("miou", {"name": lambda card: ""}, "`name` is empty"),
        ("miou", {"settings": lambda card: {"x": object()}}, "no JSON"),
        ("miou", {"CLASS_METRIC": ""}, "CLASS_METRIC and by_class disagree"),
        ("accuracy", {"SOURCE": "nothing"}, "is no metric|unknown metric"),
        ("fd", {"DIRECTION": "higher"}, "the better images scored"),
        ("ms_ssim", {"DIRECTION": "higher"}, "the better images scored"),
        ("throughput", {"DIRECTION": "lower"}, "the better images scored"),
    ],
)
def test_a_metric_that_breaks_its_contract_is_refused(
    monkeypatch: pytest.MonkeyPatch, stem: str, changes: dict[str, Any], reason: str
) -> None:
    broken(monkeypatch, stem, **changes)
    with pytest.raises(SisError, match=reason):
        list(check_metric(stem))


def test_a_metric_whose_merge_depends_on_the_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from evaluators import partial

    def numbered(parts: list[partial.Partial]) -> partial.Partial:
        rows = partial.merge(parts)
        place = {name: float(i) for i, p in enumerate(parts) for name in p.image_ids}
        column = np.array([place[name] for name in rows.image_ids])
        return partial.Partial(rows.image_ids, rows.sample_indices, {**rows.columns, "place": column})

    broken(monkeypatch, "miou", merge=numbered)
    with pytest.raises(SisError, match="merg"):
        list(check_metric("miou"))


def test_a_metric_that_ignores_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    module: Any = find_metric("miou").module
    finish = module.finish
    broken(monkeypatch, "miou", finish=lambda rows, weights, judge: finish(rows, np.ones_like(weights), judge))
    with pytest.raises(SisError, match="weights are no repeats"):
        list(check_metric("miou"))


def method_that(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    from sis.methods.palette import Palette

    for name, value in changes.items():
        monkeypatch.setattr(Palette, name, value)


def test_a_method_that_draws_its_own_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def sample(self: Any, maps: Any, noise: Any) -> Any:
        return torch.randint(0, 256, (len(maps.image_ids), 3, *self.context.size), dtype=torch.uint8)

    method_that(monkeypatch, sample=sample)
    with pytest.raises(SisError, match="global random generator"):
        list(check_method(METHODS["palette"]))


def test_a_method_that_mixes_the_images_of_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def sample(self: Any, maps: Any, noise: Any) -> Any:
        drawn = noise.integers("x", 0, (3, *self.context.size), 256)
        return (drawn + drawn[:1]).remainder(256).to(torch.uint8)

    method_that(monkeypatch, sample=sample)
    with pytest.raises(SisError, match="depend on how the set is cut"):
        list(check_method(METHODS["palette"]))


def test_a_method_that_counts_its_calls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    calls = [0]

    def sample(self: Any, maps: Any, noise: Any) -> Any:
        calls[0] += 1
        return torch.full((len(maps.image_ids), 3, *self.context.size), calls[0], dtype=torch.uint8)

    method_that(monkeypatch, sample=sample)
    with pytest.raises(SisError, match="same run twice gave different pixels"):
        list(check_method(METHODS["palette"]))


def test_a_method_that_ignores_its_label_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def sample(self: Any, maps: Any, noise: Any) -> Any:
        return torch.zeros(len(maps.image_ids), 3, *self.context.size, dtype=torch.uint8)

    method_that(monkeypatch, sample=sample)
    with pytest.raises(SisError, match="every label map gives the same image"):
        list(check_method(METHODS["palette"]))


def test_a_method_that_claims_the_wrong_variety_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    with pytest.raises(SisError, match="gave equal samples"):
        list(check_method(dataclasses.replace(METHODS["palette"], deterministic=False)))


def test_a_contestant_that_reads_photographs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sis.methods.real import Real

    monkeypatch.setattr(Real, "ROLE", "contestant")
    with pytest.raises(SisError, match="ROLE must be control"):
        list(check_method(METHODS["real"]))


def test_a_dataset_that_shows_a_training_image_in_val_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sis.data.layouts import scenes

    read = scenes.read

    def leaky(card: DatasetCard, entry: Entry) -> Pair:
        same = Entry("train-" + entry.image_id[-5:], "train")
        return replace(read(card, same), image_id=entry.image_id)

    monkeypatch.setattr(scenes, "read", leaky)
    with pytest.raises(SisError, match="16 photographs in both train and val: train-00000 = val-00000"):
        list(check_dataset("scenes_tiny"))


def test_a_dataset_whose_preparation_depends_on_chance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from itertools import count

    from sis.data.layouts import scenes

    read, calls = scenes.read, count()

    def fickle(card: DatasetCard, entry: Entry) -> Pair:
        return replace(read(card, entry), reference_id=f"train-{next(calls) % 47:05d}")

    monkeypatch.setattr(scenes, "read", fickle)
    with pytest.raises(SisError, match=r"scenes_tiny/.* twice gives different bytes"):
        list(check_dataset("scenes_tiny"))


def test_check_prints_a_line_for_every_clause(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("row_colours") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("ok  ") for line in lines)


def test_check_of_an_unknown_name_offers_the_nearest_of_all_kinds() -> None:
    for wrong, right in (("palete", "palette"), ("scenes_tinny", "scenes_tiny"), ("miuo", "miou")):
        with pytest.raises(SisError, match=rf"nothing is called '{wrong}'.*did you mean '{right}'"):
            check(wrong)
