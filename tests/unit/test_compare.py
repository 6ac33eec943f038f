# SPDX-License-Identifier: Apache-2.0
"""Two measured sets on the same label maps: which differences are shown, and which comparisons are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_sets import CARD, correlated, facts, real_rows, rows, write_partials, write_reference, write_set

from evaluators.compare import COMPARISON, Comparison, Row, compare, write_comparison
from evaluators.score import score
from sis.config.protocols import NetworkRecord
from sis.data.tables import read_table
from sis.errors import SisError

MAPS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that is better by a little on every label map, its rival, and the reference."""
    folder = tmp_path_factory.mktemp("sets")
    better, worse = correlated(MAPS, 0, 0.1)
    write_set(folder / "a", better, 1, "Better")
    write_set(folder / "b", worse, 2, "Worse")
    write_reference(folder / "reference")
    return folder


@pytest.fixture(scope="module")
def found(root: Path) -> Comparison:
    return compare(root / "a", root / "b", CARD, root / "reference", classes=True)


def by_metric(found: Comparison) -> dict[str, Row]:
    return {row.metric.partition("[")[0]: row for row in found.rows if not row.class_name}


def test_the_better_set_is_better_by_each_metric_in_its_direction(found: Comparison) -> None:
    metrics = by_metric(found)
    assert list(metrics) == ["miou", "accuracy", "fd-scenes-segmenter", "lpips-alex", "ms-ssim", "images-per-second"]
    for name, sign in {"miou": 1, "accuracy": 1, "fd-scenes-segmenter": -1, "lpips-alex": 1, "ms-ssim": -1}.items():
        row = metrics[name]
        assert row.verdict == "A better", name
        assert row.low is not None and row.high is not None and row.difference is not None
        assert 0 < sign * row.low < sign * row.high or 0 < sign * row.high < sign * row.low
        assert row.low < row.difference < row.high
    assert metrics["lpips-alex"].metric == "lpips-alex[stand-in:seeded]"
    assert (found.a.title, found.b.title, found.label_maps) == ("Better", "Worse", MAPS)


def test_values_and_intervals_are_those_of_the_score_tables(root: Path, found: Comparison, tmp_path: Path) -> None:
    tables = [score(root / x, root / "reference", CARD, tmp_path / f"{x}.parquet").to_pylist() for x in "ab"]
    for row in found.rows:
        one, two = (
            next(r for r in table if (r["metric"], r["class_name"]) == (row.metric, row.class_name)) for table in tables
        )
        assert (row.a, row.b, row.protocol_id) == (one["value"], two["value"], one["protocol_id"])
        if row.low is not None:
            differences = np.array(one["replicates"]) - np.array(two["replicates"])
            np.testing.assert_allclose([row.low, row.high], np.percentile(differences, [2.5, 97.5]))
            assert row.p_value == min(1, 2 * (1 + min((differences <= 0).sum(), (differences >= 0).sum())) / 201)


def test_win_rates_count_label_maps_and_exist_where_single_images_have_values(found: Comparison) -> None:
    metrics = by_metric(found)
    for name in ("miou", "accuracy", "lpips-alex", "ms-ssim"):
        row = metrics[name]
        assert row.wins is not None and row.ties is not None and row.losses is not None
        assert row.wins + row.ties + row.losses == MAPS and row.wins > 30
        assert row.win_rate == (row.wins + row.ties / 2) / MAPS
    assert metrics["fd-scenes-segmenter"].win_rate is None, "a contribution to one's own score wins nothing"


def test_speed_is_compared_without_an_interval_and_only_on_equal_devices(root: Path, tmp_path: Path) -> None:
    row = by_metric(compare(root / "a", root / "b", CARD, metrics=["throughput"]))["images-per-second"]
    assert (row.a, row.difference, row.low, row.p_value, row.verdict) == (MAPS, 0, None, None, "no interval")
    other = write_partials(tmp_path / "gpu", CARD, rows(np.full(MAPS, 0.5), 3), facts(CARD, MAPS), {"device": "cuda:0"})
    row = by_metric(compare(root / "a", other, CARD, metrics=["throughput"]))["images-per-second"]
    assert (row.difference, row.verdict) == (None, "undefined")
    assert row.note == "judged differently: settings.device cpu against cuda:0"


def test_classes_are_a_family_of_their_own(found: Comparison) -> None:
    classes = [row for row in found.rows if row.class_name]
    assert {row.metric for row in classes} == {"iou"} and len(classes) == 10
    least = min(row.p_value for row in classes if row.p_value is not None)
    assert min(row.p_holm for row in classes if row.p_holm is not None) == pytest.approx(10 * least)
    metrics = [row for row in found.rows if not row.class_name and row.p_value is not None]
    assert [row.p_holm for row in metrics] == pytest.approx([5 * 2 / 201] * 5)


def test_no_difference_is_shown_between_sets_of_one_kind(tmp_path: Path) -> None:
    same, _ = correlated(MAPS, 0, 0.0)
    a, b = write_set(tmp_path / "a", same, 1), write_set(tmp_path / "b", same, 2)
    verdicts = {r.verdict for r in compare(a, b, CARD, metrics=["miou", "accuracy"]).rows}
    assert verdicts == {"no difference shown"}


def test_what_is_not_measured_is_undefined_with_a_reason(root: Path, tmp_path: Path) -> None:
    row = by_metric(compare(root / "a", root / "b", CARD))["fd-scenes-segmenter"]
    assert (row.a, row.verdict, row.note) == (None, "undefined", "needs the partials of the reference")
    one = {k: v for k, v in rows(np.full(MAPS, 0.5), 3).items() if k in ("miou", "fd")}
    single = write_partials(tmp_path / "single", CARD, one, facts(CARD, MAPS, samples=1))
    row = by_metric(compare(root / "a", single, CARD))["ms-ssim"]
    assert (row.verdict, row.note) == ("undefined", "B: 1 of 2 samples a map")


def test_a_combined_metric_is_compared_by_its_parts(tmp_path: Path) -> None:
    card = CARD.model_copy(update={"metrics": ["total"]})
    better, worse = correlated(MAPS, 0, 0.1)
    a, b = write_set(tmp_path / "a", better, 1, card=card), write_set(tmp_path / "b", worse, 2, card=card)
    reference = write_reference(tmp_path / "reference", card=card)
    (row,) = compare(a, b, card, reference).rows
    assert (row.metric.startswith("total-"), row.verdict) == (True, "A better")
    assert row.win_rate is None
    (row,) = compare(a, b, card).rows
    assert row.note == "needs the partials of the reference"


def test_weights_that_nobody_can_verify_are_named(tmp_path: Path) -> None:
    networks = {k: r.model_copy(update={"verified": False}) for k, r in facts(CARD, MAPS).networks.items()}
    a, b = (write_set(tmp_path / x, np.full(MAPS, 0.5), 1, networks=networks) for x in "ab")
    noted = {r.metric: r.note for r in compare(a, b, CARD, metrics=["miou", "ms_ssim"], classes=True).rows}
    assert noted == {"miou": "unverified weights", "iou": "unverified weights", "ms-ssim": ""}


def changed_network(kind: str) -> dict[str, Any]:
    networks = facts(CARD, MAPS).networks
    return {k: NetworkRecord(name=r.name, sha256="bb") if k.startswith(kind) else r for k, r in networks.items()}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"pairs_sha256": "q" * 64}, "from other label maps: pairs_sha256 pppppppppppp against qqqqqqqqqqqq"),
    ({"size": [32, 48]}, r"from other label maps: size \[32, 40\] against \[32, 48\]"),
    ({"stand_ins": {}}, "with other stand-ins: lpips-alex seeded against nothing - measure both with the same"),
    ({"networks": changed_network("trained")}, "under different protocols: miou: networks .*aa.* against .*bb"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=["maps", "size", "stand-in", "network"])
def test_sets_that_were_judged_differently_are_refused_in_one_line(
    root: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = write_set(tmp_path / "other", np.full(MAPS, 0.5), 3, **change)
    with pytest.raises(SisError, match=message) as refused:
        compare(root / "a", other, CARD)
    assert "\n" not in str(refused.value)


def test_a_metric_may_be_compared_where_others_were_judged_differently(root: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", np.full(MAPS, 0.5), 3, stand_ins={})
    (row,) = compare(root / "a", other, CARD, metrics=["miou"]).rows
    assert row.verdict == "A better"


def test_other_folders_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SisError, match="partials of reference, expected images"):
        compare(root / "a", root / "reference", CARD)
    with pytest.raises(SisError, match="no such artefact"):
        compare(root / "a", tmp_path / "nowhere", CARD)
    card = CARD.model_copy(update={"ms_ssim": CARD.ms_ssim.model_copy(update={"window": 3})})
    with pytest.raises(SisError, match="ms_ssim was measured under another protocol"):
        compare(root / "a", root / "b", card)
    about = facts(CARD, 9, kind="reference", samples=1, networks=changed_network("trained"))
    judged = write_partials(tmp_path / "reference", CARD, real_rows(9), about)
    with pytest.raises(SisError, match=r"reference was judged by other networks: trained.*sha256 aa against bb"):
        compare(root / "a", root / "b", CARD, judged)


def test_metrics_are_chosen_by_stem_or_by_name(root: Path) -> None:
    named = compare(root / "a", root / "b", CARD, metrics=["ms_ssim", "lpips-alex"])
    assert list(by_metric(named)) == ["lpips-alex", "ms-ssim"]
    with pytest.raises(SisError, match=r"has no metric 'mious' - did you mean 'miou'\?"):
        compare(root / "a", root / "b", CARD, metrics=["mious"])


def test_both_files_hold_every_row(found: Comparison, tmp_path: Path) -> None:
    told, table = write_comparison(found, tmp_path / "out")
    assert Comparison.model_validate_json(told.read_text()) == found
    assert [Row.model_validate(r) for r in read_table(table, COMPARISON).to_pylist()] == found.rows
    assert set(COMPARISON.names) == set(Row.model_fields)
