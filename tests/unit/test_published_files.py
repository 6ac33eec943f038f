# SPDX-License-Identifier: Apache-2.0
"""A file of published numbers is read strictly: what is doubtful is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sis.errors import SisError
from sis.publish.published import load_published
from sis.publish.tables import PUBLISHED_COLUMNS

HEAD = ",".join(PUBLISHED_COLUMNS)
ROW = "SDM,Table I,ade20k,sdm,,fid,27.5,lower,a note"


def _write(folder: Path, *rows: str, name: str = "t") -> Path:
    (folder / f"{name}.csv").write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    return folder


def test_an_unknown_table_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"no table .* 'sdm_tabel1'.*did you mean 'sdm_table1'"):
        load_published(["sdm_tabel1"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, ROW.replace("27.5", "n/a")], r"value: 'n/a' is no number \[.*t.csv:3\]"),
        ([ROW.replace("27.5", "inf")], r"value: 'inf' is no number"),
        ([ROW.replace("27.5", "")], r"value: '' is no number"),
        ([ROW.replace("lower", "smaller")], r"unknown direction 'smaller' \[.*t.csv:2\]"),
        ([ROW, ROW], r"SDM, Table I, ade20k, sdm, fid stands twice \[.*t.csv:3\] - the other: .*t.csv:2"),
        ([ROW, ROW.replace("ade20k", "cityscapes").replace("lower", "higher")], r"fid: higher .* \[.*t.csv:3\]"),
        ([ROW + ",more"], r"has not 9 cells \[.*t.csv:2\]"),
        ([ROW, ROW.rpartition(",")[0]], r"has not 9 cells \[.*t.csv:3\]"),
        ([ROW.replace("ade20k", "ADE20K")], r"dataset: 'ADE20K' is no name"),
        ([ROW.replace("SDM", "")], r"paper is empty"),
        ([ROW.replace(",sdm,,", ",sdm, s=1,")], r"variant: ' s=1' begins or ends with a blank"),
        ([ROW.replace("a note", '"a\nnote"')], r"note: the cell holds a line break .* \[.*t.csv:2\]"),
        ([ROW, "", ROW.replace("fid", "kid")], r"paper is empty \[.*t.csv:3\]"),
        ([], r"holds no numbers \[.*t.csv\]"),
    ],
)
def test_a_doubtful_table_is_refused_with_file_and_line(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(SisError, match=message) as caught:
        load_published(["t"], _write(tmp_path, *rows))
    assert "\n" not in str(caught.value)


def test_other_columns_and_broken_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEAD.replace("variant,", "") + "\n" + ROW.replace(",,", ",") + "\n")
    with pytest.raises(SisError, match=r"not a table of published numbers \[.*t.csv:1\] - columns are paper, table"):
        load_published(["t"], tmp_path)
    (tmp_path / "t.csv").write_bytes(f"{HEAD}\n{ROW}".encode() + b"\xff\n")
    with pytest.raises(SisError, match=r"cannot read the published numbers.*UTF8"):
        load_published(["t"], tmp_path)


def test_one_number_in_two_tables_is_refused(tmp_path: Path) -> None:
    _write(_write(tmp_path, ROW), ROW, name="u")
    with pytest.raises(SisError, match=r"stands twice \[.*u.csv:2\] - the other: .*t.csv:2"):
        load_published(["t", "u"], tmp_path)


def test_cells_that_look_like_nulls_stay_text(tmp_path: Path) -> None:
    table = load_published(["t"], _write(tmp_path, ROW.replace("a note", "NA")))
    assert (table["note"].iloc[0], table["variant"].iloc[0]) == ("NA", "")
