# SPDX-License-Identifier: Apache-2.0
"""Files of `sis embed-prompts`: the embeddings of a dataset's three prompts, by name, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sis.data.atomic import atomic_path
from sis.data.tensors import write_tensors
from sis.data.weight_names import refuse_differences
from sis.errors import SisError
from sis.nets.latent.text import BUFFERS

#: The method whose network these weights fill.
METHOD = "prompts"


def write_embeddings(embeddings: Tensor, facts: dict[str, Any], out: Path) -> None:
    """Write embeddings `(3, tokens, width)` in the order of `BUFFERS`; facts go into the file's header."""
    with atomic_path(out) as temporary:
        named = dict(zip(BUFFERS, embeddings.unbind(), strict=True))
        write_tensors({k: v.contiguous().clone() for k, v in named.items()}, temporary, facts)


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the embeddings of the three prompts."""
    return set(state) == set(BUFFERS)


def describe(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Their size, and what `fit` says of it."""
    tokens, width = _size(state)
    return {"prompts": ", ".join(state), "fit": {"tokens": tokens, "width": width}}


def to_model(state: Mapping[str, Tensor], network: nn.Module, fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The embeddings under the names of the method's network; raises SisError for another size or for a stand-in."""
    if fit["stand_in"]:
        raise SisError("a stand-in has no checkpoint", where=where, fix="leave out stand_in: true")
    tokens, width = _size(state)
    fix = f"set `fit: {{tokens: {tokens}, width: {width}}}`"
    own = network.state_dict()
    refuse_differences(state, {purpose: own[name] for purpose, name in BUFFERS.items()}, where, fix)
    return {name: state[purpose].float() for purpose, name in BUFFERS.items()}


def from_model(tensors: Mapping[str, Tensor], fit: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """A model's embeddings as `sis embed-prompts` names them; raises SisError for stand-ins, which no text made."""
    if fit["stand_in"]:
        raise SisError("these embeddings are a stand-in: random numbers, of no prompt", where=where)
    return {purpose: tensors[name] for purpose, name in BUFFERS.items()}


def _size(state: Mapping[str, Tensor]) -> tuple[int, int]:
    shapes = {tuple(value.shape) for value in state.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise SisError(f"embeddings of prompts are all (tokens, width), these are {sorted(shapes)}")
    tokens, width = next(iter(shapes))
    return tokens, width
