# SPDX-License-Identifier: Apache-2.0
"""Partials: what a metric keeps of each image, so that any shard order gives the same score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sis.data.tables import read_table, table_metadata, write_table
from sis.errors import SisError, first_of

_TYPES = {"int32": pa.int32(), "float32": pa.float32(), "float64": pa.float64()}


@dataclass(frozen=True)
class Partial:
    """Rows of a metric, one for each (label map, sample), sorted by that key.

    Args:
        image_ids: name of the label map, one for each row.
        sample_indices: int32 `(n,)`; 0 where a row stands for a whole group of samples.
        columns: arrays `(n, ...)` of int32, float32 or float64.
    """

    image_ids: list[str]
    sample_indices: NDArray[np.int32]
    columns: dict[str, NDArray]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def maps(self) -> list[str]:
        """The distinct label maps, sorted: the order of every weight vector."""
        return sorted(set(self.image_ids))

    def by_map(self) -> NDArray[np.intp]:
        """For each row the position of its label map in `maps`."""
        place = {name: i for i, name in enumerate(self.maps)}
        return np.array([place[name] for name in self.image_ids], np.intp)


def partial(image_ids: Sequence[str], sample_indices: Sequence[int] | NDArray, **columns: NDArray) -> Partial:
    """Build a partial from unsorted rows. Raises SisError for rows of one key that come twice."""
    keys = list(zip(image_ids, map(int, sample_indices), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    ordered = [keys[i] for i in order]
    twice = sorted({a for a, b in pairwise(ordered) if a == b})
    if twice:
        names = first_of(f"{name}#{index}" for name, index in twice)
        raise SisError(f"{len(twice)} samples are measured more than once: {names}", fix="give each shard once")
    for name, column in columns.items():
        if len(column) != len(keys):
            raise SisError(f"column {name} has {len(column)} rows for {len(keys)} keys")
    indices = np.array([index for _, index in ordered], np.int32)
    return Partial([name for name, _ in ordered], indices, {k: np.asarray(v)[order] for k, v in columns.items()})


def merge(parts: Sequence[Partial]) -> Partial:
    """Put rows together: associative, independent of order; duplicates and unequal columns are refused."""
    kinds = {tuple((k, v.dtype.name, v.shape[1:]) for k, v in sorted(p.columns.items())) for p in parts}
    if len(kinds) != 1:
        raise SisError(f"partials of {len(kinds)} kinds cannot be merged")
    ids = [name for p in parts for name in p.image_ids]
    indices = np.concatenate([p.sample_indices for p in parts])
    return partial(ids, indices, **{k: np.concatenate([p.columns[k] for p in parts]) for k in parts[0].columns})


def save_partial(rows: Partial, path: Path, metadata: dict) -> None:
    """Write a partial as Parquet with fixed-size lists; `metadata` is plain JSON (metric, version, key)."""
    layout = {k: {"dtype": v.dtype.name, "shape": list(v.shape[1:])} for k, v in rows.columns.items()}
    schema = _schema(layout)
    arrays: list[pa.Array] = [
        pa.array(rows.image_ids, pa.string()),
        pa.array(rows.sample_indices, pa.int32()),
    ]
    for name, column in rows.columns.items():
        flat = pa.array(column.reshape(-1), _TYPES[column.dtype.name])
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, schema.field(name).type.list_size))
    facts = {**metadata, "columns": layout, "content_sha256": content_sha256(rows)}
    write_table(pa.Table.from_arrays(arrays, schema=schema), path, schema, facts)


def content_sha256(rows: Partial) -> str:
    """The sha256 of keys and numbers, independent of how a file stores them."""
    digest = hashlib.sha256(json.dumps([rows.image_ids, rows.sample_indices.tolist(), sorted(rows.columns)]).encode())
    for name in sorted(rows.columns):
        digest.update(np.ascontiguousarray(rows.columns[name]).tobytes())
    return digest.hexdigest()


def load_partial(path: Path) -> tuple[Partial, dict]:
    """Read a partial and its metadata. Raises SisError for a missing, damaged or foreign file."""
    metadata = table_metadata(path)
    layout: Any = metadata.get("columns")
    try:
        schema = _schema(layout)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, pa.ArrowException) as error:
        fix = "if it was one, delete it and measure again"
        raise SisError("this Parquet file is no partial", where=path, fix=fix) from error
    table = read_table(path, schema).combine_chunks()
    columns = {}
    for name, kind in layout.items():
        flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        columns[name] = flat.reshape(len(table), *kind["shape"])
    ids = table.column("image_id").to_pylist()
    rows = partial(ids, table.column("sample_index").to_numpy(), **columns)
    if content_sha256(rows) != metadata.get("content_sha256"):
        raise SisError("the numbers of this partial were altered", where=path, fix="delete it and measure again")
    return rows, metadata


def _schema(layout: dict) -> pa.Schema:
    lists = [
        (name, pa.list_(_TYPES[kind["dtype"]], int(np.prod(kind["shape"], dtype=np.int64))))
        for name, kind in layout.items()
    ]
    return pa.schema([("image_id", pa.string()), ("sample_index", pa.int32()), *lists])
