# SPDX-License-Identifier: Apache-2.0
"""Small files of weights and lists of them, for the tests of the weights folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluators.weights import WeightCard, WeightStore
from sis.data.weight_files import write_weights


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.sentinel), "w"))


def tensors() -> dict[str, Tensor]:
    """Weights of every kind that checkpoints hold: tied, transposed, without dimensions, integers, half precision."""
    numbers = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return {
        "conv.weight": numbers,
        "conv.tied": numbers,
        "conv.turned": numbers.t(),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": numbers.half(),
        "empty": torch.zeros(0, 3),
    }


def written(path: Path, content: dict[str, Tensor] | None = None, legacy: bool = False) -> str:
    """Write a file of weights; returns its sha256."""
    content = tensors() if content is None else content
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in content.items()}, path)
    elif legacy:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        write_weights(content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def card(name: str = "net", file: str = "net.pth", **facts: Any) -> WeightCard:
    """A card with nothing known of the file."""
    known = {"url": "https://example.org/net.pth", "bytes": None, "sha256_prefix": None, "licence": "none"}
    return WeightCard(name=name, file=file, purpose="test", **{**known, **facts})


def store(folder: Path, *cards: WeightCard, **pins: str) -> WeightStore:
    """A weights folder with these cards and pins."""
    return WeightStore(folder, cards or (card(),), pins)
