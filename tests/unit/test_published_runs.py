# SPDX-License-Identifier: Apache-2.0
"""Published numbers stand beside the runs that they belong to, and beside no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import publish_example as example  # pyright: ignore[reportMissingImports]
import pytest
import yaml

from sis.config.experiment import Experiment
from sis.config.strict_yaml import load_model
from sis.errors import SisError
from sis.plan import load_plan
from sis.publish import experiment as stage
from sis.publish.published import PlannedRun, load_published, numbers_beside
from sis.publish.table_text import to_markdown
from sis.publish.tables import PUBLISHED_COLUMNS, comparison_table

ROOT = Path(__file__).resolve().parents[2]


def _experiment(runs: dict[str, dict[str, Any]], **keys: Any) -> Experiment:
    data = {"name": "e", "title": "E", "datasets": {"ade20k": {"protocol": "p"}}, "published": ["sdm_table4"]}
    return Experiment.model_validate({**data, "runs": runs, **keys})


def _beside(experiment: Experiment) -> pd.DataFrame:
    runs = [PlannedRun(d, n, r.method) for d in experiment.datasets for n, r in experiment.runs.items()]
    return numbers_beside(load_published(experiment.published), experiment, runs)


def _fid(beside: pd.DataFrame, metric: str = "fid") -> dict[str, list[float]]:
    rows = beside.loc[beside["metric"] == metric]
    return {str(run): [float(v) for v in group["value"]] for run, group in rows.groupby("run")}


def test_a_run_meets_the_variant_that_it_reproduces() -> None:
    experiment = _experiment(
        {
            "full": {"method": "sdm", "published": ""},
            "unguided": {"method": "sdm", "sample": {"guidance": 1.0}, "published": "s=1"},
            "concat": {"method": "sdm", "fit": {"conditioning": "concat"}, "published": "concat"},
            "ours": {"method": "sdm", "sample": {"steps": 10}, "published": None},
        }
    )
    assert _fid(_beside(experiment)) == {"full": [27.5], "unguided": [30.8], "concat": [39.2]}


def test_a_run_meets_its_number_in_every_table_that_prints_it() -> None:
    experiment = _experiment({"full": {"method": "sdm"}}, published=["sdm_table1", "sdm_table5"])
    beside = _beside(experiment)
    assert _fid(beside) == {"full": [27.5, 27.5]}
    assert sorted(set(beside["table"])) == ["Table I", "Table V"]


def test_methods_without_runs_and_runs_without_numbers_are_harmless() -> None:
    experiment = _experiment({"p": {"method": "palette"}, "c": {"method": "class_mean"}}, published=["scp_table2"])
    beside = _beside(experiment)
    assert beside.empty and tuple(beside.columns) == (*PUBLISHED_COLUMNS, "run")
    scores = example.frame(example.score_rows())
    assert to_markdown(comparison_table(scores, beside)) == to_markdown(comparison_table(scores))


def test_another_card_of_a_dataset_meets_its_numbers_only_when_it_says_so() -> None:
    runs = {"joint": {"method": "scp_diff", "published": "joint prior"}}
    tables = ["scp_table1"]
    silent = _experiment(runs | {"joint": {"method": "scp_diff"}}, datasets={"ade20k_512": {"protocol": "p"}})
    assert _beside(silent).empty
    said = _experiment(runs, datasets={"ade20k_512": {"protocol": "p", "published": "ade20k"}}, published=tables)
    beside = _beside(said)
    assert _fid(beside) == {"joint": [12.66]} and set(beside["dataset"]) == {"ade20k_512"}


def test_the_experiment_says_which_of_our_metrics_a_paper_means() -> None:
    runs = {"full": {"method": "sdm"}}
    assert set(_beside(_experiment(runs))["metric"]) == {"miou", "fid", "lpips"}
    mapped = _beside(_experiment(runs, published_metrics={"lpips": "lpips-sdm"}))
    assert _fid(mapped, "lpips-sdm") == {"full": [0.524]} and "lpips" not in set(mapped["metric"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"runs": {"a": {"method": "sdm", "published": "encdec, s=1"}}},
            "no variant 'encdec, s=1' of sdm.*did you mean",
        ),
        (
            {"runs": {"a": {"method": "concat", "published": "concat"}}},
            "no variant 'concat' of concat.*methods: known: sdm",
        ),
        ({"published_metrics": {"mioo": "miou"}}, "no metric 'mioo'.*did you mean 'miou'"),
        ({"datasets": {"a": {"protocol": "p", "published": "ade2k"}}}, "no dataset 'ade2k'.*did you mean 'ade20k'"),
    ],
)
def test_words_that_the_tables_lack_are_refused(changes: dict[str, Any], message: str) -> None:
    experiment = _experiment({"a": {"method": "sdm"}}).model_dump(exclude_unset=True) | changes
    with pytest.raises(SisError, match=message) as caught:
        _beside(Experiment.model_validate(experiment))
    assert "[config/experiments/e.yaml]" in str(caught.value)


def test_runs_that_differ_do_not_stand_beside_one_number_by_oversight() -> None:
    guided, unguided = {"method": "sdm"}, {"method": "sdm", "sample": {"guidance": 1.0}}
    with pytest.raises(SisError, match=r"runs 'a' and 'b' differ.*give each its `published:`"):
        _beside(_experiment({"a": guided, "b": unguided}))
    seeds = {f"seed{i}": {**guided, "seed": i} for i in range(3)}
    assert _fid(_beside(_experiment(seeds))) == {name: [27.5] for name in seeds}
    said = {"a": {**guided, "published": ""}, "b": {**unguided, "published": ""}}
    assert _fid(_beside(_experiment(said))) == {"a": [27.5], "b": [27.5]}


def test_an_experiment_that_speaks_of_tables_names_them(tmp_path: Path) -> None:
    head = "name: e\ntitle: E\ndatasets: {scenes: {protocol: scenes}}\n"
    for text, message in [
        ("runs: {a: {method: sdm, published: concat}}\n", "runs.a.published needs `published:`"),
        ("runs: {a: {method: sdm}}\npublished_metrics: {lpips: lpips-sdm}\n", "published_metrics needs `published:`"),
        ("runs: {a: {method: sdm}}\npublished: [sdm_table1, sdm_table1]\n", "a table is named twice"),
    ]:
        (tmp_path / "e.yaml").write_text(head + text)
        with pytest.raises(SisError, match=message):
            load_model(tmp_path / "e.yaml", Experiment)


def test_a_planned_experiment_shows_paper_ours_and_difference_for_every_variant(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "name: e\ntitle: E\ndatasets: {scenes: {protocol: scenes, published: ade20k}}\n"
        "runs:\n  full: {method: sdm}\n  s1: {method: sdm, sample: {guidance: 1.0}, published: s=1}\n"
        "  real: {method: real}\npublished: [sdm_table4, sdm_text]\n"
    )
    plan = load_plan({}, experiment=str(tmp_path / "e.yaml"))
    beside = stage._published(plan)  # pyright: ignore[reportPrivateUsage]
    rows = [
        example.score(run=spec.name, run_id=spec.run_id, method=spec.method.name, title=spec.name, value=30.0)
        for spec in plan.runs
    ]
    table = comparison_table(example.frame(rows), beside)
    shown = {row.run: [(p.value, p.difference, p.table) for p in row.cells[0].published] for row in table.rows}
    assert shown == {
        "full": [(39.2, pytest.approx(-9.2), "Table IV")],
        "s1": [(29.7, pytest.approx(0.3), "Table IV")],
        "real": [(35.3, pytest.approx(-5.3), "text of Section IV-B")],
    }


def test_the_example_of_the_page_means_what_it_says() -> None:
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    example_text = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example_text is not None
    experiment = Experiment.model_validate({"name": "e", "title": "E", **yaml.safe_load(example_text[1])})
    beside = _beside(experiment)
    assert _fid(beside) == {"sdm": [15.9, 27.5, 27.5], "sdm-s1": [30.8]}
    assert set(_fid(beside, "lpips-sdm")) == {"sdm", "sdm-s1"}


def test_experiments_of_the_project_name_tables_and_variants_that_exist() -> None:
    names = [path.stem for path in (ROOT / "config" / "experiments").glob("*.yaml")]
    assert "demo" in names
    for name in names:
        plan = load_plan({}, experiment=name)
        beside = stage._published(plan)  # pyright: ignore[reportPrivateUsage]
        assert (beside is None) == (not plan.experiment.published), name
