# SPDX-License-Identifier: Apache-2.0
"""Reads Jittor's `.pkl` checkpoints without running what they contain: numbers under names, or nothing.

A file is a protocol-4 pickle, the SHA-1 of the pickle and a mark of 8 bytes. The pickle may ask for very few things by
name (arrays, their types, Jittor's variables around them); stand-ins take note of what it wants of them, and arrays are
made here, of checked types, shapes and lengths. Neither numpy nor Jittor is ever called by a file.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sis.errors import SisError

#: What a protocol-4 pickle begins with; torch writes protocol 2.
BEGINNING = b"\x80\x04"
_MARK = b"HCAJSLHD"
_SHA1_BYTES = 20
#: Element types that have the same meaning in torch.
_TYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})

#: What a pickle may name, and what stands in for it.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "type",
    ("jittor", "jittor_core.Var"): "variable",
    ("jittor_core", "Var"): "variable",
    ("collections", "OrderedDict"): "dict",
}


def is_jittor(path: Path) -> bool:
    """Whether a file begins as Jittor's checkpoints do."""
    with path.open("rb") as handle:
        return handle.read(len(BEGINNING)) == BEGINNING


def read_jittor(path: Path) -> object:
    """What a checkpoint holds, its arrays as tensors: normally a dict of them by name.

    Raises SisError, with nothing executed, for a file that is cut short or damaged, or that holds more than numbers.
    """
    data = path.read_bytes()
    body, digest, mark = data[: -_SHA1_BYTES - len(_MARK)], data[-_SHA1_BYTES - len(_MARK) : -len(_MARK)], data[-8:]
    if mark != _MARK:
        raise SisError("a pickle without Jittor's mark, or a damaged file; nothing in it was run", where=path)
    if hashlib.sha1(body, usedforsecurity=False).digest() != digest:
        raise SisError("a damaged Jittor checkpoint: its digest differs; nothing in it was run", where=path)
    try:
        return _numbers(_Reader(io.BytesIO(body)).load())
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
            MemoryError, RecursionError, ImportError) as error:  # fmt: skip
        what = "not a Jittor checkpoint of named weights; nothing in it was run"
        raise SisError(f"{what} ({' '.join(str(error).split())[:120]})", where=path) from error


class _Reader(pickle.Unpickler):
    """An unpickler that finds stand-ins alone."""

    def find_class(self, module: str, name: str, /) -> _StandIn:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _StandIn(_NAMES[module, name])


@dataclass(slots=True)
class _StandIn:
    """What a pickle gets for a name; calling it makes a note.

    Not frozen: older releases of Python 3.11 replace `__setstate__` of a frozen class with slots by their own.
    """

    kind: str

    def __call__(self, *given: Any) -> Any:
        if self.kind == "array":
            return _Note("array")
        if self.kind == "type" and given and isinstance(given[0], str):
            return _Note("type", code=given[0])
        if self.kind == "variable" and len(given) == 1 and isinstance(given[0], _Note):
            return given[0]
        if self.kind == "dict" and not given:
            return {}
        raise pickle.UnpicklingError(f"it calls a {self.kind} with {len(given)} arguments")

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it changes a {self.kind}")


@dataclass(slots=True)
class _Note:
    """An array or an element type that a pickle describes; state: what it says of it."""

    kind: str
    code: str = ""
    state: tuple[Any, ...] = field(default=())

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple):
            raise pickle.UnpicklingError(f"it describes an {self.kind} by a {type(state).__name__}")
        self.state = state


def _numbers(value: object) -> object:
    """The same with tensors for notes of arrays; everything else is for the caller to judge."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    return _tensor(value) if isinstance(value, _Note) and value.kind == "array" else value


def _tensor(note: _Note) -> Tensor:
    """An array of the state (version, shape, type, whether Fortran's order, bytes) that numpy gives."""
    _, shape, kind, fortran, raw = note.state
    order = kind.state[1] if isinstance(kind, _Note) and len(kind.state) > 1 else "="
    if not isinstance(kind, _Note) or kind.code not in _TYPES or order not in ("<", ">", "|", "="):
        raise ValueError("an array of something else than numbers")
    whole = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    width = int(kind.code[1])
    if not whole or not isinstance(raw, bytes) or len(raw) != width * math.prod(shape):
        raise ValueError("an array whose bytes do not fit its shape")
    found = np.frombuffer(raw, np.dtype(order + kind.code)).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(found, np.dtype(f"={kind.code}"), order="C"))
