# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files of named weights that are not ours, without ever running what they contain."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sis.data.atomic import atomic_path
from sis.data.jittor_files import is_jittor, read_jittor
from sis.data.manifest import file_sha256
from sis.errors import SisError, first_of

#: Older releases could be made to run code even with `weights_only` (CVE-2025-32434, CVE-2026-24747).
_LEAST_TORCH = (2, 10)


@dataclass(frozen=True)
class WeightFile:
    """The named weights of a file, on the CPU, and the file's own facts."""

    tensors: dict[str, Tensor]
    path: Path
    sha256: str
    bytes: int


def read_weights(path: Path) -> WeightFile:
    """Read a `.safetensors` file, or what torch or Jittor saved of a plain state dict.

    Of a training checkpoint with one entry `state_dict` (mmsegmentation, Lightning) that entry alone is taken.

    Raises SisError, with nothing executed, for a file that is missing, truncated or damaged, that holds anything but
    numbers under names, or whose floating-point weights are not all finite.
    """
    if not path.is_file():
        raise SisError("no such file", where=path)
    content = _content(path)
    tensors, size = _plain(content, path), path.stat().st_size
    swollen = [name for name, value in tensors.items() if value.nbytes > size]
    if swollen:
        raise SisError(f"weights larger than their file: {first_of(swollen)}", where=path)
    sick = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if sick:
        raise SisError(f"weights are not finite: {first_of(sick)}", where=path)
    return WeightFile(tensors, path, file_sha256(path), size)


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain state dict as torch does, whole or not at all."""
    packed = {name: _own(value.detach().cpu().contiguous()) for name, value in tensors.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        try:
            torch.save(packed, handle)  # of a path it would write the name into the file
        except RuntimeError as error:  # what becomes of the system's error when the archive is closed
            raise SisError("the file could not be written", where=path, fix="is the disk full?") from error


def _own(value: Tensor) -> Tensor:
    """Without the storage behind a view, which would be written too."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _content(path: Path) -> object:
    if path.suffix == ".safetensors":
        return _safetensors(path)
    return read_jittor(path) if is_jittor(path) else _pickled(path)


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SisError("not a readable safetensors file, or a damaged one", where=path) from error


def _pickled(path: Path) -> object:
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < _LEAST_TORCH:
        raise SisError(
            f"torch {torch.__version__} does not read foreign files safely", fix="install torch 2.10 or newer"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what torch warns of while loading is not a plain state dict
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError,
            AssertionError, MemoryError, OverflowError, Warning) as error:  # fmt: skip
        what = "not a state dict that torch saved, or a damaged one; nothing in it was run"
        raise SisError(f"{what} ({_reason(error)})", where=path) from error


def _reason(error: BaseException) -> str:
    """The first sentence of torch's explanation, which goes on about how to trust the file after all."""
    text = " ".join(str(error).split())
    for mark in ("WeightsUnpickler error: ", "Unsupported ", "unsupported "):
        if mark in text:
            text = text[text.index(mark) :]
            break
    return text.split(". ")[0][:120] if " " in text else type(error).__name__


def _plain(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise SisError(f"holds a {type(content).__name__}, not named weights", where=path)
    content = _unwrapped(content, path)
    if not content:
        raise SisError("holds no weights", where=path)
    other = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if other:
        raise SisError(f"holds more than named weights: {first_of(other)}", where=path, fix="save the state dict alone")
    odd = [name for name, value in content.items() if not _is_ordinary(value)]
    if odd:
        raise SisError(f"holds sparse, nested or 8-bit floating-point tensors: {first_of(odd)}", where=path)
    return dict(content)


def _is_ordinary(value: Tensor) -> bool:
    """Whether its numbers can be compared and written like any others."""
    small = value.is_floating_point() and value.element_size() < 2
    return not value.is_nested and value.layout is torch.strided and not small


def _unwrapped(content: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    """The entry `state_dict`, if there is one and no second entry holds named weights."""
    inner = content.get("state_dict")
    if not isinstance(inner, Mapping):
        return content
    others = [str(name) for name, value in content.items() if name != "state_dict" and _has_weights(value)]
    if others:
        raise SisError(
            f"holds weights in several places: state_dict, {first_of(others)}", where=path, fix="save one of them alone"
        )
    return inner


def _has_weights(value: object) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())
    )
