# SPDX-License-Identifier: Apache-2.0
"""The papers' numbers, transcribed whole: every cell counted, misprints noted, papers held against each other."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest

from sis.methods.discovery import methods
from sis.publish.published import KEY, load_published
from sis.publish.tables import PUBLISHED_COLUMNS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "config" / "published"

#: Numeric cells of every table and their sum, counted in the papers' texts and not in our files.
CELLS = {
    "sdm_table1": (87, 1691.252),
    "sdm_table2": (10, 848.0),
    "sdm_table3": (43, 2139.5),
    "sdm_table4": (15, 325.573),
    "sdm_table5": (8, 259.7),
    "sdm_text": (2, 74.3),
    "leaderboard_page": (10, 380.97),
    "scp_table1": (24, 1121.56),
    "scp_table2": (56, 2234.1),
    "scp_table3": (6, 2.53),
    "scp_table4": (6, 12.0),
    "scp_abstract": (2, 23.19),
    "iidm_table1": (30, 1716.55),
    "iidm_table2": (25, 1460.99),
}

#: table, dataset, method, variant, metric, value: read from the papers by eye.
SPOTS = [
    ("sdm_table1", "celebamask_hq", "pix2pixhd", "", "fid", 38.5),
    ("sdm_table1", "cityscapes", "spade", "", "fid", 71.8),
    ("sdm_table1", "ade20k", "spade", "", "fid", 22.6),
    ("sdm_table1", "coco_stuff", "dagan", "", "lpips", 0.0),
    ("sdm_table1", "cityscapes", "cc_fpse", "", "lpips", 0.026),
    ("sdm_table1", "ade20k", "groupdnet", "", "lpips", 0.230),
    ("sdm_table1", "celebamask_hq", "inade", "", "lpips", 0.415),
    ("sdm_table1", "coco_stuff", "oasis", "", "fid", 17.0),
    ("sdm_table1", "coco_stuff", "controlnet", "", "lpips", 0.671),
    ("sdm_table1", "celebamask_hq", "sdm_lora", "", "fid", 34.6),
    ("sdm_table1", "cityscapes", "sdm", "", "fid", 42.1),
    ("sdm_table1", "coco_stuff", "sdm", "", "lpips", 0.518),
    ("sdm_table2", "celebamask_hq", "sdm", "preferred to INADE", "preference", 89.0),
    ("sdm_table2", "coco_stuff", "sdm", "preferred to SPADE", "preference", 94.0),
    ("sdm_table3", "cityscapes", "cc_fpse", "", "miou", 65.2),
    ("sdm_table3", "coco_stuff", "scgan", "", "miou", 44.3),
    ("sdm_table3", "ade20k", "clade", "", "miou", 23.9),
    ("sdm_table3", "celebamask_hq", "sdm", "", "miou", 77.0),
    ("sdm_table3", "coco_stuff", "sdm_lora", "", "miou", 12.3),
    ("sdm_table4", "ade20k", "sdm", "concat", "fid", 39.2),
    ("sdm_table4", "ade20k", "sdm", "enc, s=1", "lpips", 0.526),
    ("sdm_table4", "ade20k", "sdm", "enc+dec, s=1", "miou", 37.4),
    ("sdm_table4", "ade20k", "sdm", "s=1", "fid", 30.8),
    ("sdm_table4", "ade20k", "sdm", "", "lpips", 0.524),
    ("sdm_table5", "ade20k", "sdm", "DPM-Solver, T=100", "fid", 46.8),
    ("sdm_table5", "coco_stuff", "sdm", "DPM-Solver, T=100", "miou", 32.2),
    ("sdm_text", "ade20k", "real", "", "miou", 35.3),
    ("leaderboard_page", "coco_stuff", "sdm", "FID of another kind", "fid", 2.68),
    ("leaderboard_page", "ade20k_to_coco_stuff", "sdm", "100 target images", "fid", 104.9),
    ("leaderboard_page", "cityscapes", "sdm", "", "miou", 69.1),
    ("scp_table1", "cityscapes", "scp_diff", "", "fid", 23.35),
    ("scp_table1", "cityscapes", "scp_diff", "spatial prior", "accuracy", 94.29),
    ("scp_table1", "ade20k", "scp_diff", "categorical prior", "miou", 21.86),
    ("scp_table1", "ade20k", "scp_diff", "joint prior", "accuracy", 71.79),
    ("scp_table2", "coco_stuff", "crn", "", "fid", 70.4),
    ("scp_table2", "ade20k", "spade", "", "fid", 33.9),
    ("scp_table2", "cityscapes", "lggan_plus", "", "fid", 48.1),
    ("scp_table2", "coco_stuff", "freestylenet", "", "fid", 14.4),
    ("scp_table2", "ade20k", "scp_diff", "joint prior", "fid", 13.0),
    ("scp_table3", "ade20k", "scp_diff", "", "ms-ssim", 0.17),
    ("scp_table3", "ade20k", "scp_diff", "joint prior", "lpips", 0.56),
    ("scp_table4", "unstated", "oasis", "", "rank-fidelity", 1.65),
    ("scp_abstract", "ade20k", "scp_diff", "joint prior", "fid", 12.66),
    ("iidm_table1", "landscapes", "sean", "", "style", 68.38),
    ("iidm_table1", "landscapes", "clade", "", "total", 57.18),
    ("iidm_table1", "landscapes", "spade", "", "fid", 43.39),
    ("iidm_table2", "landscapes", "iidm", "I2I+RF", "style", 49.24),
    ("iidm_table2", "landscapes", "iidm", "I2I+RF+CT", "total", 65.09),
    ("iidm_table2", "landscapes", "iidm", "DM", "fid", 35.41),
]

BETTER = {
    "higher": {
        "lpips",
        "miou",
        "accuracy",
        "preference",
        "aesthetic",
        "style",
        "total",
        "rank-quality",
        "rank-fidelity",
    },
    "lower": {"fid", "ms-ssim"},
}


@pytest.fixture(scope="module")
def everything() -> pd.DataFrame:
    return load_published(list(CELLS))


def _value(table: pd.DataFrame, *key: str) -> float:
    rows = table
    for column, cell in zip(KEY[-len(key) :], key, strict=True):
        rows = rows.loc[rows[column] == cell]
    assert len(rows) == 1, f"{key}: {len(rows)} rows"
    return float(rows["value"].iloc[0])


def _notes(table: str, **columns: str) -> list[str]:
    rows = load_published([table])
    for column, cell in columns.items():
        rows = rows.loc[rows[column] == cell]
    return [str(note) for note in rows["note"]]


def test_every_file_of_published_numbers_is_counted() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_table_holds_every_numeric_cell_of_its_paper(name: str) -> None:
    table = load_published([name])
    assert (len(table), round(float(table["value"].sum()), 3)) == CELLS[name]


@pytest.mark.parametrize(("table", "dataset", "method", "variant", "metric", "value"), SPOTS)
def test_a_number_is_what_the_paper_prints(
    table: str, dataset: str, method: str, variant: str, metric: str, value: float
) -> None:
    assert _value(load_published([table]), dataset, method, variant, metric) == value


def test_all_tables_load_together_with_fixed_types(everything: pd.DataFrame) -> None:
    assert tuple(everything.columns) == PUBLISHED_COLUMNS
    assert len(everything) == sum(count for count, _ in CELLS.values())
    assert everything["value"].dtype == "float64"
    texts = everything.drop(columns="value")
    assert all(isinstance(cell, str) for column in texts for cell in texts[column])
    assert not everything.duplicated(list(KEY)).any()


def test_the_direction_agrees_with_the_metric_everywhere(everything: pd.DataFrame) -> None:
    found = {d: set(rows["metric"]) for d, rows in everything.groupby("direction")}
    assert found == BETTER


def test_datasets_and_methods_carry_our_names(everything: pd.DataFrame) -> None:
    ours = {path.stem for path in (ROOT / "config" / "datasets").glob("*.yaml")}
    foreign = {"ade20k_to_cityscapes", "ade20k_to_coco_stuff", "coco_stuff_to_ade20k", "unstated"}
    assert set(everything["dataset"]) - ours == foreign
    assert {"sdm", "real"} <= set(everything["method"]) & set(methods())


def test_every_number_has_a_note(everything: pd.DataFrame) -> None:
    assert everything["note"].str.len().min() > 10


@pytest.mark.parametrize(
    ("table", "columns", "text"),
    [
        ("sdm_table1", {"method": "spade", "dataset": "ade20k", "metric": "fid"}, "misprint.*swapped"),
        ("sdm_table1", {"method": "spade", "dataset": "coco_stuff", "metric": "fid"}, "misprint.*swapped"),
        ("sdm_table1", {"method": "sdm", "metric": "lpips"}, "legacy LPIPS"),
        ("sdm_table1", {"method": "sdm", "metric": "fid"}, "val photographs as the sampler writes them"),
        ("sdm_table1", {"method": "inade", "metric": "fid"}, "statistics of the training set"),
        ("sdm_table1", {"method": "controlnet", "dataset": "cityscapes", "metric": "fid"}, "23.35"),
        ("sdm_table3", {"dataset": "ade20k"}, "real photographs score 35.3"),
        ("sdm_table3", {"dataset": "coco_stuff"}, "real photographs score 39.0"),
        ("sdm_table3", {"method": "oasis", "dataset": "ade20k"}, "48.8 in OASIS's paper"),
        ("sdm_table3", {"method": "spade", "dataset": "celebamask_hq"}, "own implementation"),
        ("sdm_table4", {"variant": "enc, s=1"}, "marked without guidance"),
        ("sdm_table4", {"variant": "enc+dec, s=1"}, "marked without guidance"),
        ("sdm_table4", {"variant": ""}, "mixes with the rows above"),
        ("sdm_table5", {"variant": "DPM-Solver, T=100"}, "order, skip type and thresholding"),
        ("leaderboard_page", {"variant": "FID of another kind"}, "another variant of FID"),
        ("leaderboard_page", {"dataset": "cityscapes", "metric": "miou"}, "third party"),
        ("scp_table1", {"metric": "fid"}, "50,000 images"),
        ("scp_table1", {"metric": "fid", "variant": ""}, "step 901, not 951"),
        ("scp_table1", {"metric": "fid", "dataset": "cityscapes"}, "mixes val into train"),
        ("scp_table1", {"metric": "fid", "dataset": "ade20k", "variant": "joint prior"}, "contradicts Table 2: 13.0"),
        ("scp_table2", {"dataset": "cityscapes", "method": "scp_diff", "variant": ""}, "contradicts Table 1: 23.35"),
        ("scp_table2", {"dataset": "ade20k", "variant": "joint prior"}, "contradicts Table 1 and the abstract: 12.66"),
        ("scp_table2", {"method": "ecgan"}, "one image a map, not 50,000"),
        ("scp_table3", {"method": "oasis"}, "taken over from OASIS's paper"),
        ("iidm_table1", {"method": "iidm", "variant": "", "metric": "total"}, "misprint.*65.22"),
        ("iidm_table2", {"variant": "", "metric": "total"}, "misprint.*65.22"),
        ("iidm_table1", {"metric": "fid"}, "training photographs"),
    ],
)
def test_misprints_and_caveats_stand_in_the_notes(table: str, columns: dict[str, str], text: str) -> None:
    notes = _notes(table, **columns)
    assert notes
    assert all(re.search(text, note) for note in notes), notes


def test_scores_of_iidm_add_up_except_in_the_last_row() -> None:
    """Equation 8 from the printed parts, each within its rounding; the authors sometimes cut instead of rounding."""
    for name in ("iidm_table1", "iidm_table2"):
        for (method, variant), rows in load_published([name]).groupby(["method", "variant"]):
            parts = dict(zip(rows["metric"], rows["value"], strict=True))
            corners = [
                (parts["accuracy"] + a)
                / 100
                * (
                    0.2 * (parts["aesthetic"] + b)
                    + 0.3 * (0.5 * (parts["style"] + c) + 50)
                    + 0.5 * (100 - parts["fid"] - d)
                )
                for a, b, c, d in itertools.product((-0.005, 0.005), repeat=4)
            ]
            fits = min(corners) - 0.01 < parts["total"] < max(corners) + 0.005
            assert fits == ((method, variant) != ("iidm", "")), (name, method, variant)


def test_the_misprinted_total_needs_another_part() -> None:
    table = load_published(["iidm_table1"])
    M, A, S, F = (_value(table, "iidm", "", m) for m in ("accuracy", "aesthetic", "style", "fid"))
    assert round(M / 100 * (0.2 * A + 0.3 * (0.5 * S + 50) + 0.5 * (100 - F)), 2) == 65.22


def test_papers_agree_where_one_copies_from_another_save_for_the_swap_and_controlnet() -> None:
    sdm, scp = load_published(["sdm_table1"]), load_published(["scp_table2"])
    # SDM measured a ControlNet of its own, so it has another name; its numbers lie far from SCP-Diff's.
    scp.loc[(scp["method"] == "scp_diff") & (scp["variant"] == ""), "method"] = "controlnet"
    both = sdm.merge(scp, on=["dataset", "method", "variant", "metric"], suffixes=("", "_scp"))
    odd = both.loc[both["value"] != both["value_scp"]]
    assert len(both) == 26
    assert set(zip(odd["method"], odd["dataset"], strict=True)) == {
        ("spade", "ade20k"),
        ("spade", "coco_stuff"),
        ("controlnet", "cityscapes"),
        ("controlnet", "ade20k"),
        ("controlnet", "coco_stuff"),
    }


def test_the_gains_that_sdm_names_follow_only_with_the_swap_undone() -> None:
    """Section IV-B: +2.2, +0.8, +2.0, +1.1 FID over the most recent methods."""
    fid = load_published(["sdm_table1"]).query("metric == 'fid'").set_index(["dataset", "method"])["value"]
    fid["ade20k", "spade"], fid["coco_stuff", "spade"] = fid["coco_stuff", "spade"], fid["ade20k", "spade"]
    gains = {}
    for dataset in ("cityscapes", "ade20k", "celebamask_hq", "coco_stuff"):
        rivals = fid[dataset].drop(["sdm", "sdm_lora", "controlnet"])
        gains[dataset] = round(float(rivals.min() - fid[dataset, "sdm"]), 1)
    assert gains == {"cityscapes": 2.2, "ade20k": 0.8, "celebamask_hq": 2.0, "coco_stuff": 1.1}


def test_printed_changes_of_the_noise_priors_are_the_differences_of_their_rows() -> None:
    table = load_published(["scp_table1"])
    for row in table.itertuples():
        change = re.search(r"change printed ([+-][0-9.]+);", str(row.note))
        assert change is not None
        normal = _value(table, str(row.dataset), "scp_diff", "", str(row.metric))
        assert round(float(str(row.value)) - normal, 2) == float(change[1])
