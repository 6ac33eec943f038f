# SPDX-License-Identifier: Apache-2.0
"""Tables: their schema is checked on both sides, and damage is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sis.data.schemas import PUBLISHED_SCORES, SCORES
from sis.data.tables import read_table, table_metadata, write_table
from sis.errors import SisError

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float64())])
TABLE = pa.table({"name": [f"n{i}" for i in range(500)], "value": [i / 7 for i in range(500)]}, schema=SCHEMA)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_table(TABLE, tmp_path / "t.parquet", SCHEMA, {"key": "k", "numbers": [1, 2]})
    return tmp_path / "t.parquet"


def test_what_was_written_is_read(path: Path) -> None:
    assert read_table(path, SCHEMA).equals(TABLE)
    assert read_table(path, SCHEMA, columns=["value"]).column_names == ["value"]
    assert table_metadata(path) == {"key": "k", "numbers": [1, 2]}


def test_other_tools_read_it(path: Path) -> None:
    assert pd.read_parquet(path)["value"].iloc[7] == 1.0
    assert pq.read_table(path).num_rows == 500


def test_equal_tables_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "again.parquet", SCHEMA, {"numbers": [1, 2], "key": "k"})
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (TABLE.drop_columns(["value"]), "missing column value"),
        (TABLE.append_column("more", pa.array(range(500))), "extra column more"),
        (TABLE.set_column(1, "value", pa.array(range(500))), "value is int64, not double"),
    ],
)
def test_another_schema_is_refused_on_both_sides(tmp_path: Path, table: pa.Table, reason: str) -> None:
    with pytest.raises(SisError, match=reason):
        write_table(table, tmp_path / "no.parquet", SCHEMA)
    assert not (tmp_path / "no.parquet").exists()
    pq.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(SisError, match=reason):
        read_table(tmp_path / "foreign.parquet", SCHEMA)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="no such table"):
        read_table(tmp_path / "absent.parquet", SCHEMA)


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_cut_table_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(SisError, match="damaged Parquet file"):
        read_table(path, SCHEMA)
    with pytest.raises(SisError, match="no sis metadata"):
        table_metadata(path)


def test_a_flipped_bit_in_the_values_is_noticed_wherever_it_is(path: Path) -> None:
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    good = path.read_bytes()
    noticed = 0
    for position in range(start, start + chunk.total_compressed_size, 11):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        try:
            assert read_table(path, SCHEMA).equals(TABLE), f"byte {position}"
        except SisError as error:
            noticed += "damaged Parquet file" in str(error)
    assert noticed > 100


def test_a_foreign_table_has_no_metadata_of_ours(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "foreign.parquet")
    with pytest.raises(SisError, match="no sis metadata"):
        table_metadata(tmp_path / "foreign.parquet")


def test_published_scores_are_the_scores_without_replicates() -> None:
    assert set(SCORES.names) - set(PUBLISHED_SCORES.names) == {"replicates"}
