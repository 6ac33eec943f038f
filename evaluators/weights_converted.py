# SPDX-License-Identifier: Apache-2.0
"""Converted weights: a published pickle as safetensors, which records what it was made from and guards every bit.

The header carries, as JSON under the key `sis`, the source's name, size and sha256, and a `digest`: the sha256 of the
converted file itself with the digest's own 64 digits written as zeros.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from evaluators.weights_bytes import CHUNK, silent, unreadable
from sis.data.atomic import atomic_path
from sis.errors import SisError

if TYPE_CHECKING:
    from torch import Tensor

    from sis.data.weight_files import WeightFile

_ZEROS = b"0" * 64
#: The library refuses longer headers, too.
_LONGEST_HEADER = 100_000_000
_DAMAGED = "a converted file that is damaged, or was not written by `weights convert`"
_FIX = "delete it and convert again"


@dataclass(frozen=True)
class Origin:
    """The published file that a converted one was made from."""

    file: str
    bytes: int
    sha256: str


def converted_path(path: Path) -> Path:
    """Where the converted form of the file `path` lies: beside it, one more suffix."""
    return path.with_name(path.name + ".safetensors")


def write_converted(source: WeightFile, out: Path) -> None:
    """Write the weights of `source` to `out`, whole or not at all; equal sources give equal bytes.

    Raises SisError when the file cannot be written.
    """
    from sis.data.tensors import write_tensors

    origin = {"file": source.path.name, "bytes": source.bytes, "sha256": source.sha256}
    with atomic_path(out) as temporary:
        packed = {name: _own(value) for name, value in source.tensors.items()}
        write_tensors(packed, temporary, {"source": origin, "digest": _ZEROS.decode()})
        with temporary.open("r+b") as handle:
            prefix = _header(handle, temporary)
            digest = _hash(prefix, handle, silent)
            handle.seek(prefix.index(_ZEROS))
            handle.write(digest.encode())
        shutil.copymode(source.path, temporary)  # the library's files are their owner's alone


def read_origin(path: Path, advance: Callable[[int], None]) -> Origin:
    """Check every bit of a converted file and say what it was made from; its weights are not loaded.

    advance: called with the number of bytes of each piece that was read. Raises SisError for a file that is damaged,
    or that `write_converted` did not write.
    """
    try:
        with path.open("rb") as handle:
            prefix = _header(handle, path)
            facts = json.loads(json.loads(prefix[8:])["__metadata__"]["sis"])
            source, digest = facts["source"], str(facts["digest"])
            origin = Origin(str(source["file"]), int(source["bytes"]), str(source["sha256"]))
            start = prefix.index(digest.encode())
            advance(len(prefix))
            found = _hash(prefix[:start] + _ZEROS + prefix[start + len(_ZEROS) :], handle, advance)
    except OSError as error:
        raise unreadable(error, path) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SisError(_DAMAGED, where=path, fix=_FIX) from error
    if found != digest:
        raise SisError(_DAMAGED, where=path, fix=_FIX)
    return origin


def _header(handle: BinaryIO, path: Path) -> bytes:
    """The eight bytes of the header's length, and the header."""
    start = handle.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_LONGEST_HEADER, path.stat().st_size):
        raise SisError(_DAMAGED, where=path, fix=_FIX)
    return start + handle.read(length)


def _hash(prefix: bytes, rest: BinaryIO, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256(prefix)
    while piece := rest.read(CHUNK):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def _own(value: Tensor) -> Tensor:
    """In a storage of its own: the format has no shared ones."""
    return value.detach().contiguous().clone()
