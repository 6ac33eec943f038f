# SPDX-License-Identifier: Apache-2.0
"""Turns the names of an experiment's runs and models into what they are, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sis.config import files
from sis.config.cards import DatasetCard
from sis.config.experiment import Experiment, Run, Settings
from sis.config.models import BaseCard, ModelEntry
from sis.config.protocols import ProtocolCard
from sis.errors import SisError, did_you_mean
from sis.methods.discovery import MethodInfo
from sis.run_spec import RunSpec


@dataclass
class Resolver:
    """Makes the runs of an experiment on one dataset, and the models that they use."""

    settings: Settings
    experiment: Experiment
    card: DatasetCard
    protocol: ProtocolCard
    known: dict[str, MethodInfo]
    runs: dict[str, Run]
    made: dict[str, RunSpec] = field(default_factory=dict)

    def spec(self, name: str, asked_by: tuple[str, ...] = ()) -> RunSpec:
        """The run or model called `name`. Raises SisError for names that nothing has, and for circles."""
        if name in asked_by:
            raise self._refusal(f"{' uses '.join([*asked_by, name])}", "end the circle of `uses:`")
        if name not in self.made:
            entry = self._entry(name)
            method = self._method(name, entry)
            self._refuse_what_cannot_be(name, entry, method)
            uses = {role: self.spec(other, (*asked_by, name)) for role, other in entry.uses.items()}
            self._refuse_other_uses(name, method, uses)
            self.made[name] = self._made(name, entry, method, uses)
        return self.made[name]

    def _entry(self, name: str) -> Run | ModelEntry:
        if name in self.runs:
            return self.runs[name]
        if name in self.experiment.models:
            return self.experiment.models[name]
        known = [*self.runs, *self.experiment.models, *files.names("bases")]
        if name not in known:
            raise self._refusal(f"nothing is called {name!r}", did_you_mean(name, known))
        base = files.named("bases", name, BaseCard)
        return base.model_copy(update={"checkpoint": f"{self.settings.weights.rstrip('/')}/{base.checkpoint}"})

    def _method(self, name: str, entry: Run | ModelEntry) -> MethodInfo:
        if isinstance(entry, Run) and entry.image_set:
            return MethodInfo(entry.method, "given", entry.method, "contestant", Path())
        if entry.method not in self.known:
            where = f"config/experiments/{self.experiment.name}.yaml, run {name}"
            fix = did_you_mean(entry.method, self.known)
            raise SisError(f"no method called {entry.method!r}", where=where, fix=fix)
        return self.known[entry.method]

    def _made(
        self, name: str, entry: Run | ModelEntry, method: MethodInfo, uses: dict[str, RunSpec]
    ) -> RunSpec:  # fmt: skip
        chosen, run = self.experiment, entry if isinstance(entry, Run) else Run(method=entry.method)
        samples = run.samples_per_map or (1 if method.deterministic else chosen.samples_per_map)
        return RunSpec(
            self.card, self.protocol, name, method, entry.title or method.title, entry.fit, run.sample, entry.seed,
            chosen.sample_seed, samples, chosen.batch_size, chosen.shard_size, chosen.threads, entry.checkpoint,
            entry.checkpoint_weights, run.image_set, run.prior, uses,
        )  # fmt: skip

    def _refuse_what_cannot_be(self, name: str, entry: Run | ModelEntry, method: MethodInfo) -> None:
        sample = entry.sample if isinstance(entry, Run) else {}
        if method.shows_photographs(sample) and not self.card.splits[self.protocol.split].photographs:
            split = f"{self.card.name}/{self.protocol.split}"
            fix = "leave it out, or name the `datasets:` that it runs on"
            raise self._refusal(f"run {name!r} shows real photographs, {split} has none", fix)
        if entry.checkpoint and not method.trains:
            raise self._refusal(f"run {name!r} names a checkpoint, but method {method.name} has no model", "")
        if method.is_part and isinstance(entry, Run):
            what = f"run {name!r}: {method.name} makes no images, it serves other methods"
            raise self._refusal(what, "write it under `models:`")
        if not method.trains and isinstance(entry, ModelEntry):
            raise self._refusal(f"model {name!r}: method {method.name} trains nothing", "")

    def _refuse_other_uses(self, name: str, method: MethodInfo, uses: dict[str, RunSpec]) -> None:
        """Raise SisError unless each role has one fitting model, the same one that the other models were made with."""
        for role in method.uses:
            if role not in uses:
                raise self._refusal(
                    f"{name!r} needs `uses: {{{role}: ...}}`", f"a {' or '.join(method.uses[role].methods)}"
                )
        for role, spec in uses.items():
            if role not in method.uses:
                raise self._refusal(f"{name!r}: {method.name} has no role {role!r}", did_you_mean(role, method.uses))
            if spec.method.name not in method.uses[role].methods:
                wanted = " or ".join(method.uses[role].methods)
                raise self._refusal(f"{name!r}: {role} must be a {wanted}, {spec.name} is a {spec.method.name}", "")
            for inner, other in spec.uses.items():
                if inner in uses and uses[inner].model_id != other.model_id and not spec.checkpoint:
                    what = f"{name!r} has the {inner} {uses[inner].name}, its {role} was trained with {other.name}"
                    raise self._refusal(what, f"use one {inner} for both")

    def _refusal(self, what: str, fix: str) -> SisError:
        return SisError(what, where=f"config/experiments/{self.experiment.name}.yaml", fix=fix)
