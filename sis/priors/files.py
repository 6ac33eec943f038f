# SPDX-License-Identifier: Apache-2.0
"""Priors, and shards of their statistics, as named tensors that say what they are of and refuse what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sis.config.base import StrictModel
from sis.data.provenance import RunRecord
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError
from sis.priors.accumulator import Accumulator
from sis.priors.params import StatisticsParams
from sis.priors.prior import Gaussians, Prior
from sis.priors.statistics import Statistics

#: The tensor that holds the facts, so that they go wherever the numbers go.
_FACTS = "facts"
_PARTS = ("joint", "categorical", "spatial")
_STREAMS = ("joint", "classes", "positions")


class PriorFacts(StrictModel):
    """What a prior was computed from."""

    dataset: str = Field(description="name of the dataset")
    pairs: str = Field(description="digest of the training pairs")
    labels: str = Field(description="hash of the label table: names and ids of the classes")
    classes: int = Field(ge=1, description="label ids are 0..classes-1")
    size: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(description="[height, width] of the images")
    autoencoder: str = Field(description="id or sha256 of the autoencoder")
    params: StatisticsParams = Field(description="what the statistics were taken of")
    images: str = Field(description="hash of all drawn image ids, of all shards together")
    count: int = Field(ge=1, description="visits of images behind these very numbers")
    shards: list[int] = Field(default=[0], description="shards behind these very numbers")
    of_shards: int = Field(default=1, ge=1, description="shards of the whole draw")

    def require(
        self, *, dataset: str = "", labels: str = "", size: Sequence[int] = (), autoencoder: str = "",
        where: object = None,
    ) -> None:  # fmt: skip
        """Raise SisError, naming the first fact that differs from what is given; empty ones are not compared."""
        wanted = {"dataset": dataset, "labels": labels, "size": list(size), "autoencoder": autoencoder}
        for name, value in wanted.items():
            found = getattr(self, name)
            if value and found != value:
                raise SisError(
                    f"this is a prior of another {_WORDS[name]}: {_shown(found)}, sampling uses {_shown(value)}",
                    where=where,
                    fix="compute the prior again for this run",
                )

    def merge(self, other: PriorFacts) -> PriorFacts:
        """The facts of both shards together. Raises SisError unless they are different shards of one draw."""
        for name in self.model_dump(exclude={"count", "shards"}):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                raise SisError(
                    f"prior statistics of different {_WORDS[name]} cannot be merged: {_shown(one)} and {_shown(two)}",
                    fix="merge the shards of one prior only",
                )
        twice = sorted(set(self.shards) & set(other.shards))
        if twice:
            raise SisError(f"shard {twice[0]} of the prior statistics is there twice", fix="merge every shard once")
        shards = sorted([*self.shards, *other.shards])
        return self.model_copy(update={"count": self.count + other.count, "shards": shards})


_WORDS = {
    "dataset": "dataset", "pairs": "training pairs", "labels": "label table", "classes": "number of classes",
    "size": "resolution", "autoencoder": "autoencoder", "params": "parameters", "images": "drawn images",
    "of_shards": "number of shards",
}  # fmt: skip


def prior_tensors(prior: Prior, facts: PriorFacts) -> dict[str, Tensor]:
    """A finished prior with its facts, as a method's `prior` returns it.

    Raises SisError while shards are missing.
    """
    if len(facts.shards) != facts.of_shards:
        missing = sorted(set(range(facts.of_shards)) - set(facts.shards))
        raise SisError(f"the prior lacks shard {missing[0]} of {facts.of_shards}", fix="merge all shards")
    named = {
        f"{part}.{name}": getattr(getattr(prior, part), name) for part in _PARTS for name in ("count", "mean", "std")
    }
    return {**named, _FACTS: _packed(facts)}


def read_prior(tensors: Mapping[str, Tensor], where: object = None) -> tuple[Prior, PriorFacts]:
    """A prior and its facts from the tensors of `prior_tensors`. Raises SisError for any others."""
    facts = _facts(tensors, where)
    prior = Prior(
        *(Gaussians(*(_get(tensors, f"{part}.{n}", where) for n in ("count", "mean", "std"))) for part in _PARTS)
    )
    _same_classes(prior.classes, facts, where)
    return prior, facts


def statistics_tensors(statistics: Statistics, facts: PriorFacts) -> dict[str, Tensor]:
    """A shard of statistics, in float64, with its facts."""
    streams = {name: getattr(statistics, name) for name in _STREAMS}
    named = {
        f"{stream}.{name}": torch.from_numpy(array.copy())
        for stream, moments in streams.items()
        if moments is not None
        for name, array in moments.arrays().items()
    }
    return {**named, _FACTS: _packed(facts)}


def read_statistics(tensors: Mapping[str, Tensor], where: object = None) -> tuple[Statistics, PriorFacts]:
    """Statistics and their facts from the tensors of `statistics_tensors`. Raises SisError for any others."""
    facts = _facts(tensors, where)
    found = {
        stream: Accumulator.from_arrays(*(_get(tensors, f"{stream}.{n}", where) for n in ("count", "mean", "m2")))
        for stream in _STREAMS
        if stream == "joint" or f"{stream}.count" in tensors
    }
    statistics = Statistics(found["joint"], found.get("classes"), found.get("positions"))
    _same_classes(statistics.joint.classes, facts, where)
    return statistics, facts


def save_statistics(statistics: Statistics, facts: PriorFacts, path: Path, run: RunRecord | dict) -> None:
    """Write a shard of statistics with its manifest, whole or not at all."""
    plain = facts.model_dump(mode="json")
    save_tensors(statistics_tensors(statistics, facts), path, "prior", plain, run, inside=plain)


def merge_files(paths: Sequence[Path]) -> tuple[Statistics, PriorFacts]:
    """Merge shards of statistics in the order of their numbers.

    Raises SisError when a file is damaged, or when they are not the different shards of one draw.
    """
    if not paths:
        raise SisError("no prior statistics to merge")
    loaded = [read_statistics(load_tensors(path, "prior")[0], path) for path in paths]
    # In a fixed order the merged bits do not depend on the order of the names.
    loaded.sort(key=lambda pair: pair[1].shards)
    statistics, facts = loaded[0]
    for more, its_facts in loaded[1:]:
        facts = facts.merge(its_facts)
        statistics = statistics.merge(more)
    return statistics, facts


def _packed(facts: PriorFacts) -> Tensor:
    text = json.dumps(facts.model_dump(mode="json"), sort_keys=True)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _facts(tensors: Mapping[str, Tensor], where: object) -> PriorFacts:
    packed = _get(tensors, _FACTS, where)
    try:
        return PriorFacts.model_validate_json(bytes(packed.tolist()))
    except (ValidationError, ValueError, TypeError) as error:
        raise SisError("the facts of this prior cannot be read", where=where, fix="compute it again") from error


def _get(tensors: Mapping[str, Tensor], name: str, where: object) -> Tensor:
    if name not in tensors:
        raise SisError(f"no prior of SCP-Diff: it lacks {name!r}", where=where, fix="compute the prior of this run")
    return tensors[name]


def _same_classes(classes: int, facts: PriorFacts, where: object) -> None:
    if facts.classes != classes:
        raise SisError(f"the prior has {classes} classes, its facts say {facts.classes}", where=where)


def _shown(value: object) -> str:
    if isinstance(value, StrictModel):
        return value.model_dump_json()
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
