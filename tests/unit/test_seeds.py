# SPDX-License-Identifier: Apache-2.0
"""Means over training seeds: intervals that hold both accidents, paired differences, and how both are published."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import publish_example as example  # pyright: ignore[reportMissingImports]
import pytest

from sis.config.experiment import Experiment, Run
from sis.config.strict_yaml import validate
from sis.errors import SisError
from sis.publish.leaderboard import bar_geometry
from sis.publish.publish import publish
from sis.publish.seeds import OverSeeds, mean_over_seeds, over_seeds
from sis.publish.seeds_text import differences_to_csv, differences_to_markdown, means_to_csv
from sis.publish.table_text import to_latex, to_markdown
from sis.publish.tables import comparison_table

MAPS = np.random.default_rng(5).normal(size=400)  # what the drawn label maps do to every run alike


def row(group: str, seed: int, value: float | None, spread: float = 1.0, **given: Any) -> dict[str, Any]:
    """The number of one run whose replicates follow the label maps that all runs share."""
    run = f"{group}-{seed}"
    numbers: dict[str, Any] = {"value": None, "low": None, "high": None, "note": "1 of 3 samples a map"}
    if value is not None:
        numbers = {"value": value, "replicates": (value + spread * MAPS).tolist()}
    facts = {"run": run, "run_id": f"{run}-00000000", "title": f"Method {group}", "method": "sdm", "seed": seed}
    return example.score(**{**facts, **numbers, **given})


def averaged(rows: Sequence[Mapping[str, Any]], papers: pd.DataFrame | None = None) -> OverSeeds:
    scores = example.frame([dict(one) for one in rows])
    found = over_seeds(comparison_table(scores, papers), scores, groups_of(rows))
    assert found is not None
    return found


def groups_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {one["run_id"]: one["run"].rsplit("-", 1)[0] for one in rows if one["role"] == "contestant"}


def group(values: Sequence[float], name: str, **given: Any) -> list[dict[str, Any]]:
    return [row(name, seed, value, **given) for seed, value in enumerate(values)]


def test_the_mean_of_three_seeds_by_hand() -> None:
    """Values 10, 12, 17: mean 13, standard deviation sqrt(13), Student's t of 2 degrees of freedom 4.302653."""
    maps = np.repeat([-2.0, 2.0], 200)
    found = mean_over_seeds([10.0, 12.0, 17.0], [v + maps for v in (10.0, 12.0, 17.0)])
    seeds = 4.302652729911275 * np.sqrt(13) / np.sqrt(3)
    assert (found.value, found.deviation) == (13.0, pytest.approx(np.sqrt(13)))
    assert found.low == pytest.approx(13 - np.hypot(seeds, 2))
    assert found.high == pytest.approx(13 + np.hypot(seeds, 2))


def test_seeds_that_agree_leave_the_interval_over_label_maps() -> None:
    skewed = np.random.default_rng(1).exponential(size=400)
    low, high = np.quantile(50 + skewed - 1, [0.025, 0.975])
    found = mean_over_seeds([50.0, 50.0], [50 + skewed - 1] * 2)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_is_never_narrower_than_either_part() -> None:
    random = np.random.default_rng(2)
    for _ in range(50):
        values = random.normal(50, random.exponential(), 3)
        replicates = [v + random.exponential() * random.normal(size=200) for v in values]
        both = mean_over_seeds(values.tolist(), replicates)
        maps = np.quantile(np.mean(replicates, axis=0), [0.025, 0.975])
        seeds = 4.302652729911275 * values.std(ddof=1) / np.sqrt(3)
        assert both.low is not None and both.high is not None
        assert both.low <= min(maps[0], both.value - seeds) + 1e-9
        assert both.high >= max(maps[1], both.value + seeds) - 1e-9


@pytest.mark.parametrize(("seed", "shared", "own"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.3, 0), (1, 1, 1)])
def test_the_interval_covers_the_truth_in_95_of_100_experiments(seed: float, shared: float, own: float) -> None:
    """Made-up experiments of three seeds: accidents of seeds, of label maps for all seeds, of maps for single seeds."""
    random, maps, trials = np.random.default_rng(3), 40, 600
    weights = random.multinomial(maps, np.full(maps, 1 / maps), 150) / maps
    covered = 0
    for _ in range(trials):
        numbers = seed * random.normal(size=(3, 1)) + np.sqrt(maps) * (
            shared * random.normal(size=(1, maps)) + own * random.normal(size=(3, maps))
        )
        found = mean_over_seeds(numbers.mean(1).tolist(), list(numbers @ weights.T))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered / trials > 0.93, covered / trials


def test_too_few_seeds_and_replicates_that_do_not_pair_are_refused() -> None:
    with pytest.raises(SisError, match="two of them or more"):
        mean_over_seeds([1.0], [MAPS])
    with pytest.raises(SisError, match="two training seeds cannot be paired"):
        mean_over_seeds([1.0, 2.0], [MAPS, MAPS[1:]])


def test_replicates_undefined_for_one_seed_are_left_out() -> None:
    holed = MAPS.copy()
    holed[:100] = np.nan
    whole = mean_over_seeds([0.0, 0.0], [MAPS[100:], MAPS[100:]])
    assert mean_over_seeds([0.0, 0.0], [MAPS, holed]) == whole
    assert mean_over_seeds([0.0, 1.0], [MAPS, np.full(400, np.nan)]).low is None


def test_a_difference_is_taken_seed_by_seed_and_map_by_map() -> None:
    """Seeds and label maps move both groups by far more than they differ: the means overlap, their gap is clear."""
    first, second = [40.0, 30.0, 50.0], [38.0, 28.1, 47.9]
    over = averaged(group(first, "a", spread=5.0) + group(second, "b", spread=5.0))
    (one,) = over.differences
    assert (one.first, one.second, one.seeds) == ("a", "b", (0, 1, 2))
    assert one.gaps == pytest.approx((2.0, 1.9, 2.1))
    assert one.estimate.value == pytest.approx(2.0)
    assert one.estimate.low == pytest.approx(2 - 4.302652729911275 * 0.1 / np.sqrt(3))
    assert one.estimate.beyond_chance and one.wins("higher") == 3 and one.wins("lower") == 0
    cells = [group.cells[0] for group in over.table.contestants]
    assert cells[1].high is not None and cells[0].low is not None and cells[1].high > cells[0].low
    assert [(c.standing.rank, c.standing.mark) for c in cells] == [(1, "best"), (2, "second")]


def test_a_difference_within_chance_leaves_both_best() -> None:
    over = averaged(group([40.0, 30.0, 50.0], "a") + group([38.0, 36.0, 41.0], "b"))
    (one,) = over.differences
    assert not one.estimate.beyond_chance
    assert [row.cells[0].standing.rank for row in over.table.contestants] == [1, 1]
    assert [row.cells[0].standing.mark for row in over.table.contestants] == ["best", "best"]


def test_differences_put_the_row_that_stands_higher_first() -> None:
    rows = group([10.0, 11.0], "a") + group([50.0, 51.1], "b") + group([30.0, 31.0], "c")
    over = averaged(rows)
    assert [row.run for row in over.table.contestants] == ["b", "c", "a"]
    assert [(d.first, d.second) for d in over.differences] == [("b", "c"), ("b", "a"), ("c", "a")]
    assert all(d.estimate.value > 0 and d.wins("higher") == 2 for d in over.differences)
    turned = over.differences[0].turned().turned()
    assert turned == over.differences[0]


def test_lower_is_better_where_the_metric_says_so() -> None:
    facts = {"metric": "fd-scenes-segmenter", "direction": "lower", "unit": ""}
    over = averaged(group([700.0, 701.0], "a", **facts) + group([500.0, 501.0], "b", **facts))
    assert [row.run for row in over.table.contestants] == ["b", "a"]
    (one,) = over.differences
    assert one.estimate.value == pytest.approx(-200) and one.wins("lower") == 2


def test_groups_are_compared_over_their_common_seeds_alone() -> None:
    a = group([40.0, 41.0, 42.0], "a")
    b = [row("b", seed, value) for seed, value in ((1, 30.0), (2, 31.0), (7, 99.0))]
    (one,) = averaged(a + b).differences
    assert (one.seeds, one.gaps) == ((1, 2), (pytest.approx(11.0), pytest.approx(11.0)))
    alone = averaged([*a, row("b", 2, 30.0), row("b", 7, 31.0)])
    assert alone.differences == ()
    assert [row.cells[0].standing.rank for row in alone.table.contestants] == [1, 1]


def test_a_number_that_one_seed_lacks_has_no_mean_and_says_why() -> None:
    over = averaged([row("a", 0, 40.0), row("a", 1, None), *group([30.0, 31.0], "b")])
    cells = {row.run: row.cells[0] for row in over.table.contestants}
    assert (cells["a"].value, cells["a"].note) == (None, "1 of 3 samples a map")
    assert cells["b"].value == 30.5
    assert over.differences == ()


def test_stand_ins_and_numbers_without_interval_are_averaged_and_not_ranked() -> None:
    stand_in = {"metric": "lpips-alex[stand-in:seeded-random-backbone]", "stand_in": "seeded-random-backbone"}
    speed = {"metric": "images-per-second", "unit": "images/s", "replicates": [], "low": None, "high": None}
    for facts in (stand_in, speed):
        over = averaged(group([4.0, 6.0], "a", **facts) + group([1.0, 2.0], "b", **facts))
        assert sorted(row.cells[0].value or 0 for row in over.table.contestants) == [1.5, 5.0]
        assert {row.cells[0].standing.rank for row in over.table.contestants} == {None}
    assert over.table.contestants[0].cells[0].low is None and over.compared == []


def test_single_runs_and_groups_of_one_have_no_mean_and_controls_stay() -> None:
    palette = row("palette", 0, 30.0, role="control")
    rows = [*group([40.0, 41.0], "a"), row("b", 0, 20.0), palette]
    over = averaged(rows)
    assert [row.run for row in over.table.rows] == ["a", "palette-0"]
    assert dict(over.seeds) == {"a": (0, 1)}
    scores = example.frame([row("b", 0, 20.0), palette])
    assert over_seeds(comparison_table(scores), scores, groups_of([row("b", 0, 20.0)])) is None
    assert over_seeds(comparison_table(scores), scores, {}) is None


def test_groups_are_called_as_their_runs_or_by_their_name() -> None:
    titled = {"title": "The same"}
    rows = group([4.0, 5.0], "a") + group([3.0, 4.0], "b", **titled) + group([2.0, 3.0], "c", **titled)
    rows += [row("d", seed, 1.0, title=f"D, seed {seed}") for seed in (0, 1)]
    titles = {row.run: row.title for row in averaged(rows).table.rows}
    assert titles == {"a": "Method a", "b": "The same (b)", "c": "The same (c)", "d": "d"}


def test_a_papers_number_stands_beside_the_mean() -> None:
    papers = example.published().iloc[:1].assign(method="sdm", metric="miou", value=45.0)
    over = averaged(group([40.0, 41.0, 42.0], "a"), papers)
    (paper,) = over.table.contestants[0].cells[0].published
    assert (paper.value, paper.difference) == (45.0, pytest.approx(-4.0))
    assert "| 45 (SDM, Table I) | -4.0 |" in to_markdown(over.table)


def test_replicates_of_two_groups_that_do_not_pair_are_refused() -> None:
    facts: dict[str, Any] = {"metric": "lpips-alex[stand-in:seeded-random-backbone]"}
    facts["stand_in"] = "seeded-random-backbone"
    short = [row("b", seed, 30.0, **facts, replicates=(30 + MAPS[:200]).tolist()) for seed in (0, 1)]
    with pytest.raises(SisError, match=r"replicates of lpips-alex.* cannot be paired"):
        averaged(group([40.0, 41.0], "a", **facts) + short)


@pytest.fixture(scope="module")
def over() -> OverSeeds:
    return averaged(group([40.0, 30.0, 50.0], "a") + group([38.0, 28.1, 47.9], "b") + group([30.0, 20.2, 39.8], "c"))


def test_the_text_tables_say_what_the_brackets_hold(over: OverSeeds) -> None:
    text = to_markdown(over.table)
    assert "| Method a | **40.00** \\[" in text
    assert "95 % interval over training seeds and label maps" in text and "label maps. Bold" not in text
    assert "training seeds and label maps" in to_latex(over.table)
    differences = differences_to_markdown(over)
    assert "| Method a | Method b | **+2.00** \\[+1.75, +2.25\\] 3/3 |" in differences
    assert differences.count("\n| Method") == 3


def test_the_csv_holds_every_seed_with_full_precision(over: OverSeeds) -> None:
    means = list(csv.DictReader(io.StringIO(means_to_csv(over))))
    assert (means[0]["group"], means[0]["seeds"], means[0]["values"]) == ("a", "0 1 2", "40.0 30.0 50.0")
    assert means[0]["mean"] == "40.0" and float(means[0]["low"]) < 20
    gaps = list(csv.DictReader(io.StringIO(differences_to_csv(over))))
    assert [(line["first"], line["second"], line["wins"], line["beyond_chance"]) for line in gaps] == [
        ("a", "b", "3", "yes"),
        ("a", "c", "3", "yes"),
        ("b", "c", "3", "yes"),
    ]
    assert float(gaps[0]["difference"]) == np.mean([float(gap) for gap in gaps[0]["gaps"].split()])


def experiment(rows: Sequence[Mapping[str, Any]], folder: Path, **context: Any) -> dict[str, str]:
    paths = example.write_scores(folder / "scores", [dict(one) for one in rows])
    files = publish(paths, folder / "out", replace(example.context(), datasets={}, timings=[], **context))
    return {
        str(file.relative_to(folder / "out")): file.read_text(encoding="utf-8")
        for file in files
        if file.suffix != ".parquet"
    }


def test_means_and_differences_are_published_beside_the_runs(tmp_path: Path) -> None:
    hostile = {"title": example.HOSTILE}
    rows = group([40.0, 30.0, 50.0], "a", **hostile) + group([38.0, 28.1, 47.9], "b")
    files = experiment(rows, tmp_path, groups=groups_of(rows))
    stem = "tables/scenes-scenes-seeds"
    assert {f"{stem}.{kind}" for kind in ("md", "tex", "csv")} <= files.keys()
    assert {f"{stem}-differences.{kind}" for kind in ("md", "csv")} <= files.keys()
    (board,) = json.loads(files["leaderboard.json"])["boards"]
    assert [(row["run"], row["seeds"]) for row in board["seeds"]["rows"]] == [("a", [0, 1, 2]), ("b", [0, 1, 2])]
    assert board["seeds"]["rows"][0]["cells"][0]["seeds"] == [40.0, 30.0, 50.0]
    difference = board["seeds"]["differences"]["miou"]["a"]["b"]
    assert (difference["wins"], difference["seeds"], difference["beyond_chance"]) == (3, 3, True)
    page = files["leaderboard.html"]
    assert "Means over training seeds" in page and "better in 3 of 3" in page
    assert page.count('class="tick"') == 6
    assert example.HOSTILE not in page + files[f"{stem}.md"] + files[f"{stem}-differences.md"]


def test_without_groups_nothing_changes(tmp_path: Path) -> None:
    files = experiment(group([40.0, 30.0], "a"), tmp_path)
    assert not [name for name in files if "seeds" in name]
    (board,) = json.loads(files["leaderboard.json"])["boards"]
    assert board["seeds"] is None and "over training seeds" not in files["leaderboard.html"]


def test_published_means_do_not_depend_on_the_order_of_the_files(tmp_path: Path) -> None:
    rows = group([40.0, 30.0, 50.0], "a") + group([38.0, 28.1, 47.9], "b") + group([38.0, 28.1, 47.9], "c")
    one = experiment(rows, tmp_path / "one", groups=groups_of(rows))
    other = experiment(rows[::-1], tmp_path / "other", groups=dict(reversed(groups_of(rows).items())))
    assert one == other


def test_single_seeds_are_drawn_on_the_bar_of_their_mean() -> None:
    cell = {"value": 5.0, "low": 0.0, "high": 10.0, "seeds": [0.0, 10.0]}
    place = bar_geometry(cell, [0.0, 10.0])
    assert place is not None
    assert (place["low"], place["seeds"][0]) == (2.0, 2.0)
    assert place["seeds"][1] == pytest.approx(place["low"] + place["width"])


def runs(**given: Any) -> Experiment:
    data = {"name": "x", "title": "X", "datasets": {"scenes": {"protocol": "scenes"}}, "runs": given}
    return validate(Experiment, data, "x.yaml")


def test_seeds_of_a_run_are_runs_of_one_group() -> None:
    made = runs(
        sdm={"method": "sdm", "title": "SDM", "seeds": [0, 4], "fit": {"width": 8}}, real={"method": "real"}
    ).runs
    assert list(made) == ["sdm-seed0", "sdm-seed4", "real"]
    assert [(run.seed, run.group, run.seeds) for run in made.values()] == [(0, "sdm", []), (4, "sdm", []), (0, "", [])]
    assert made["sdm-seed0"].fit == made["sdm-seed4"].fit == {"width": 8}
    assert "published" not in made["sdm-seed0"].model_fields_set
    again = Experiment.model_validate({"name": "x", "title": "X", "datasets": {"scenes": {"protocol": "scenes"}},
                                       "runs": {"sdm": Run(method="sdm", seeds=[1, 2])}})  # fmt: skip
    assert list(again.runs) == ["sdm-seed1", "sdm-seed2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": {"method": "sdm", "seeds": [1, 1]}}, r"runs\.a\.seeds: a seed is named twice"),
        ({"a": {"method": "sdm", "seeds": [1, 2], "seed": 0}}, r"runs\.a: `seeds` stands in for `seed` and `group`"),
        ({"a": {"method": "sdm", "seeds": [0, 1], "group": "b"}}, r"runs\.a: `seeds` stands in for `seed` and `group`"),
        ({"a": {"method": "sdm", "seeds": [-1, 1]}}, r"runs\.a\.seeds\.0: should be greater than or equal to 0"),
        ({"a": {"method": "sdm", "seeds": "all"}}, r"runs\.a\.seeds: should be a valid list"),
        (
            {"a": {"method": "sdm", "seeds": [0, 1]}, "a-seed1": {"method": "real"}},
            r"runs\.a: its seeds make a run 'a-seed1', which stands there already",
        ),
        (
            {"a": {"method": "sdm", "group": "g"}, "b": {"method": "sdm", "group": "g"}},
            r"runs\.b: group 'g' has seed 0 already",
        ),
        (
            {"a": {"method": "sdm", "group": "g"}, "b": {"method": "sdm", "group": "g", "seed": 1, "published": None}},
            r"runs\.b and runs\.a share a group and differ in more than their seed",
        ),
    ],
)  # fmt: skip
def test_groups_that_are_none_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message):
        runs(**given)


def test_runs_of_a_group_may_differ_in_seed_and_title() -> None:
    made = runs(
        a={"method": "sdm", "group": "g", "title": "G, seed 0"},
        b={"method": "sdm", "group": "g", "title": "G, seed 1", "seed": 1},
    )
    assert {run.group for run in made.runs.values()} == {"g"}
