# SPDX-License-Identifier: Apache-2.0
"""Turns the names of an experiment's runs and models into what they are, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sis.config import files
from sis.config.cards import DatasetCard
from sis.config.experiment import Experiment, Run, Settings
from sis.config.models import BaseCard, ModelEntry
from sis.config.protocols import ProtocolCard
from sis.errors import SisError, did_you_mean
from sis.methods.discovery import MethodInfo
from sis.needs import layered
from sis.run_spec import Ensemble, RunSpec

_Entry = TypeVar("_Entry", Run, ModelEntry)


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
            if not (isinstance(entry, Run) and entry.ensemble):
                self._refuse_other_uses(name, method, uses)
            self.made[name] = self._made(name, entry, method, uses)
        return self.made[name]

    def _entry(self, name: str) -> Run | ModelEntry:
        if name in self.runs:
            run = self.runs[name]
            return self._changed(self._changed(run, run.group), name)
        if name in self.experiment.models:
            return self._changed(self.experiment.models[name], name)
        known = [*self.runs, *self.experiment.models, *files.names("bases")]
        if name not in known:
            raise self._refusal(f"nothing is called {name!r}", did_you_mean(name, known))
        base = files.named("bases", name, BaseCard)
        fit = base.fit if base.prediction_type == "none" else {**base.fit, "prediction_type": base.prediction_type}
        checkpoint = f"{self.settings.weights.rstrip('/')}/{base.checkpoint}"
        return base.model_copy(update={"checkpoint": checkpoint, "fit": fit})

    def _changed(self, entry: _Entry, name: str) -> _Entry:
        """The entry with what this dataset's `changes:` say of a name."""
        change = self.experiment.datasets[self.card.name].changes.get(name)
        if change is None:
            return entry
        parts = {key: {**getattr(entry, key, {}), **value} for key, value in change if value}
        return entry.model_validate({**entry.model_dump(exclude_unset=True), **parts})

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
        ensemble, fit = self._ensemble(name, run), entry.fit
        if ensemble:  # the network is that of its members
            fit, uses = ensemble.members[0].fit, ensemble.members[0].uses
        asked = chosen.datasets[self.card.name].samples_per_map or chosen.samples_per_map
        samples = run.samples_per_map or (1 if method.deterministic else asked)
        return RunSpec(
            self.card, self.protocol, name, method, entry.title or method.title, fit, run.sample, entry.seed,
            chosen.sample_seed, samples, chosen.batch_size, chosen.shard_size, chosen.threads,
            entry.checkpoint.replace("{dataset}", self.card.name), entry.checkpoint_weights, run.image_set, run.prior,
            uses, run.at_step, ensemble,
            layered(entry.cluster, chosen.cluster, self.card.cluster, method.cluster, device=self.settings.device),
        )  # fmt: skip

    def _ensemble(self, name: str, run: Run) -> Ensemble | None:
        card = run.ensemble
        if card is None:
            return None
        unknown = [member for member in card.members if member not in self.runs]
        if unknown:
            raise self._refusal(f"run {name!r}: no run {unknown[0]!r}", did_you_mean(unknown[0], self.runs))
        if card.best > len(card.members):
            raise self._refusal(f"run {name!r}: the best {card.best} of {len(card.members)} runs", "lower `best:`")
        members = tuple(self.spec(member, (name,)) for member in card.members)
        other = [m.name for m in members if (m.method.name, m.fit) != (run.method, members[0].fit)]
        if other:
            what = f"run {name!r} averages networks that are alike, {other[0]} has another method or other `fit:`"
            raise self._refusal(what, "name runs of one training, or of several that differ in their seed")
        known = [entry if isinstance(entry, str) else entry.name or entry.metric for entry in self.protocol.metrics]
        if card.by not in known:
            raise self._refusal(f"run {name!r}: the protocol has no metric {card.by!r}", did_you_mean(card.by, known))
        return Ensemble(members, card.best, card.by)

    def _refuse_what_cannot_be(self, name: str, entry: Run | ModelEntry, method: MethodInfo) -> None:
        shows = isinstance(entry, Run) and method.shows_photographs(entry.sample)
        if shows and not self.card.splits[self.protocol.split].photographs:
            split = f"{self.card.name}/{self.protocol.split}"
            fix = "leave it out, or name the `datasets:` that it runs on"
            raise self._refusal(f"run {name!r} shows real photographs, {split} has none", fix)
        if entry.checkpoint and not method.trains:
            raise self._refusal(f"run {name!r} names a checkpoint, but method {method.name} has no model", "")
        if method.is_part and isinstance(entry, Run):
            what = f"run {name!r}: {method.name} makes no images, it serves other methods"
            raise self._refusal(what, "write it under `models:`")
        if isinstance(entry, Run) and entry.at_step and entry.at_step not in entry.fit.get("keep", []):  # pyright: ignore
            what = f"run {name!r} samples from step {entry.at_step}, which its training does not keep"
            raise self._refusal(what, f"write `fit: {{keep: [{entry.at_step}]}}`")
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
                raise self._refusal(f"{name!r}: {role} is filled by {wanted}; {spec.name} is {spec.method.name}", "")
        for role, spec in uses.items():
            for inner, other in spec.uses.items():
                if inner in uses and uses[inner].model_id != other.model_id and not spec.checkpoint:
                    what = f"{name!r} has the {inner} {uses[inner].name}, its {role} was trained with {other.name}"
                    raise self._refusal(what, f"use one {inner} for both")

    def _refusal(self, what: str, fix: str) -> SisError:
        return SisError(what, where=f"config/experiments/{self.experiment.name}.yaml", fix=fix)
