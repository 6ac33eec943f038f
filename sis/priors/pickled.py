# SPDX-License-Identifier: Apache-2.0
"""Reads dictionaries of arrays that `numpy.save` pickled, without running anything in the file.

Only the few names by which numpy spells arrays are known, and they stand for inert records of our own: not even numpy's
functions are called on behalf of the file.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from sis.errors import SisError

#: More bytes than any released file has (COCO-Stuff's joint prior in float64 is below 1 GB).
_MOST_BYTES = 4 * 2**30
#: More entries than any released file has (256 classes with a name, a group and two arrays).
_MOST_ENTRIES = 4096
_KINDS = {"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "O", "O8"}


def read_pickled(path: Path) -> Any:
    """The dictionaries, numbers and arrays in a pickled `.npy` file, with nothing executed.

    Raises SisError for a file that is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise SisError("no such file", where=path)
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise SisError("larger than any released prior", where=path)
    try:
        with path.open("rb") as file:
            return _Unfolding(size).plain(_payload(file))
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
            MemoryError, ImportError, RecursionError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise SisError(
            f"not a dictionary that numpy saved, or a damaged one; nothing in it was run ({reason})", where=path
        ) from error


class _Dtype:
    """What a pickle says of a data type."""

    def __init__(self, name: object = "", *_: object) -> None:
        if not isinstance(name, str) or name not in _KINDS:
            raise pickle.UnpicklingError(f"it holds data of type {str(name)[:20]!r}")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else ""
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it holds data of byte order {str(order)[:20]!r}")
        self.order = "=" if order == "|" else order


class _Array:
    """What a pickle says of an array: version, shape, type, order, and bytes or a list of objects."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Name:
    """What a name in a pickle stands for. The file can call it and do nothing else with it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *given: object) -> Any:
        return self._make(*given)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a name")


def _scalar(dtype: object = None, data: object = None) -> _Array:
    found = _Array()
    found.state = (1, (), dtype, False, data)
    return found


def _encode(text: object = None, coding: object = None) -> bytes:
    if not isinstance(text, str) or coding != "latin1":
        raise pickle.UnpicklingError("it holds text of an unknown coding")
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _Name(_Array),
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_encode),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Name(_scalar) for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return _KNOWN[module_name, global_name]

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to other files")


def _payload(file: BinaryIO) -> Any:
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    if not header(file)[2].hasobject:
        raise ValueError("it is a plain array")
    return _Reader(io.BytesIO(file.read())).load()


class _Unfolding:
    """Turns records into arrays, a bounded number of them: entries of a pickle may be repeated without being stored."""

    def __init__(self, size: int) -> None:
        """size: bytes of the file, and the most that its arrays can hold."""
        self.entries, self.bytes = _MOST_ENTRIES, size

    def plain(self, value: Any) -> Any:
        """Arrays, dictionaries, numbers and texts; anything else raises ValueError."""
        self.entries -= 1
        if self.entries < 0:
            raise ValueError("it holds too many entries")
        if isinstance(value, _Array):
            return self._array(value.state)
        if isinstance(value, dict):
            return {self._key(k): self.plain(v) for k, v in value.items()}
        if value is None or isinstance(value, int | float | str):
            return value
        raise ValueError(f"it holds a {type(value).__name__.strip('_')}")

    def _key(self, key: Any) -> Any:
        found = self.plain(key)
        return found.item() if isinstance(found, np.ndarray) else found

    def _array(self, state: Any) -> Any:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array has an unknown form")
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise ValueError("an array has no type or shape")
        if dtype.name.startswith("O"):
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise ValueError("it holds an array of objects")
            return self.plain(data[0])
        if not isinstance(data, bytes):
            raise ValueError("an array has no bytes")
        self.bytes -= len(data)
        if self.bytes < 0:
            raise ValueError("it holds more than its size")
        flat = np.frombuffer(data, np.dtype(dtype.order + dtype.name))
        return flat.reshape(shape, order="F" if by_columns else "C").copy()
