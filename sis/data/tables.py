# SPDX-License-Identifier: Apache-2.0
"""Parquet files with a schema that is checked when they are written and when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sis.data.atomic import atomic_path
from sis.errors import SisError

_KEY = b"sis"


def write_table(table: pa.Table, path: Path | str, schema: pa.Schema, metadata: dict | None = None) -> None:
    """Write `table` to `path` as Parquet (zstd, page checksums), whole or not at all.

    Raises SisError when the table's columns or types differ from `schema`.
    """
    with atomic_path(path) as temporary:
        write_table_file(table, temporary, schema, metadata)


def write_table_file(table: pa.Table, path: Path, schema: pa.Schema, metadata: dict | None = None) -> None:
    """Write `table` to exactly this path; for callers that already hold a temporary name."""
    _require(table.schema, schema, path)
    stamped = table.replace_schema_metadata({_KEY: json.dumps(metadata or {}, sort_keys=True).encode()})
    pq.write_table(stamped, path, compression="zstd", write_page_checksum=True)


@contextmanager
def table_writer(path: Path, schema: pa.Schema, metadata: dict) -> Iterator[Callable[[list[dict]], None]]:
    """Yield a function that appends rows to exactly this path, one row group a call; memory holds one group."""
    stamped = schema.with_metadata({_KEY: json.dumps(metadata, sort_keys=True).encode()})
    with pq.ParquetWriter(path, stamped, compression="zstd", write_page_checksum=True) as writer:

        def append(rows: list[dict]) -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=stamped))

        yield append


def read_table(path: Path | str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file and check its schema.

    Raises SisError for a missing, truncated or damaged file and for missing, extra or differently typed columns.
    """
    path = Path(path)
    try:
        found = pq.read_schema(path)
        _require(found, schema, path)
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise SisError("no such table", where=path, fix="run the stage that makes it") from None
    except (OSError, pa.ArrowException) as error:
        raise SisError("damaged Parquet file", where=path, fix="delete it and run its stage again") from error


def read_groups(path: Path, schema: pa.Schema) -> Iterator[list[dict]]:
    """The rows of a Parquet file, a row group at a time; raises SisError as `read_table` does."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _require(file.schema_arrow, schema, path)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SisError("damaged Parquet file", where=path, fix="delete it and run its stage again") from error


def table_metadata(path: Path | str) -> dict:
    """The JSON facts that `write_table` stored in the file's footer."""
    try:
        return json.loads((pq.read_schema(Path(path)).metadata or {})[_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise SisError("no sis metadata in this Parquet file", where=path) from error


def _require(found: pa.Schema, wanted: pa.Schema, path: Path) -> None:
    missing = [f.name for f in wanted if f.name not in found.names]
    extra = [n for n in found.names if n not in wanted.names]
    wrong = [
        f"{f.name} is {found.field(f.name).type}, not {f.type}"
        for f in wanted
        if f.name in found.names and found.field(f.name).type != f.type
    ]
    faults = [f"missing column {n}" for n in missing] + [f"extra column {n}" for n in extra] + wrong
    if faults:
        raise SisError("wrong table schema: " + "; ".join(faults), where=path)
