# SPDX-License-Identifier: Apache-2.0
"""The plan of an experiment: every artefact, its path and the parameters that decide it, before anything runs.

Names carry a hash of all parameters, so a changed parameter is another artefact and equal work is shared between
experiments. No torch is imported here: Snakemake builds the plan at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sis.config import files
from sis.config.cards import DatasetCard
from sis.config.cluster import Needs, Stage
from sis.config.experiment import Experiment, Run, Settings
from sis.config.protocols import ProtocolCard
from sis.data.manifest import stable_hash
from sis.errors import SisError, did_you_mean
from sis.methods.discovery import methods
from sis.needs import complete, layered
from sis.resolve import Resolver
from sis.run_spec import MIRRORED, RunSpec, kept_path

__all__ = ["Plan", "RunSpec", "load_plan"]


#: Metrics that read the reference photograph of each label map.
_STYLE_METRICS = ("style", "total")


@dataclass(frozen=True)
class Plan:
    """An experiment's runs, the models that they use, and the paths of all artefacts."""

    settings: Settings
    experiment: Experiment
    runs: list[RunSpec]
    parts: list[RunSpec]

    @property
    def root(self) -> str:
        return self.settings.artefacts.rstrip("/")

    @cached_property
    def _cards(self) -> dict[str, DatasetCard]:
        return {s.dataset.name: s.dataset for s in self.every}

    @cached_property
    def _protocols(self) -> dict[str, ProtocolCard]:
        return {s.protocol.name: s.protocol for s in self.every}

    def card(self, dataset: str) -> DatasetCard:
        """A dataset's card; those of the experiment are not read again."""
        return self._cards.get(dataset) or files.dataset_card(dataset)

    def pairs(self, dataset: str, split: str) -> str:
        return f"{self.root}/pairs/{dataset}/{split}/manifest.json"

    def splits(self, dataset: str) -> list[str]:
        """All splits of a dataset."""
        return [self.pairs(dataset, split) for split in self.card(dataset).splits]

    def dataset_card(self, dataset: str) -> str:
        return f"{self.root}/datasets/{dataset}/card.md"

    def dataset_table(self, dataset: str) -> str:
        return f"{self.root}/datasets/{dataset}/card.parquet"

    def dataset_picture(self, dataset: str) -> str:
        return f"{self.root}/datasets/{dataset}/pairs.png"

    def data_root(self, dataset: str) -> str:
        return str(files.dataset_root(self.card(dataset), self.settings))

    def prepared(self) -> list[str]:
        """What `snakemake prepare` makes: the cards of the chosen datasets, for which their splits are verified."""
        chosen = self.settings.prepare or list(self.experiment.datasets)
        return [self.dataset_card(files.dataset_card(name).name) for name in chosen]

    def model(self, dataset: str, model_id: str) -> str:
        return f"{self.root}/models/{dataset}/{model_id}/model.safetensors"

    def latents(self, dataset: str, latents_id: str) -> str:
        return f"{self.root}/latents/{dataset}/{latents_id}/manifest.json"

    def prior(self, dataset: str, prior_id: str) -> str:
        return f"{self.root}/priors/{dataset}/{prior_id}/prior.safetensors"

    def prior_report(self, dataset: str, prior_id: str, name: str) -> str:
        return f"{self.root}/priors/{dataset}/{prior_id}/report/{name}"

    def prior_reports(self) -> list[str]:
        """A report of every prior of latents."""
        found = {(s.dataset.name, s.prior_id) for s in self.runs if s.method.prior_of_latents}
        return [self.prior_report(*one, "prior.md") for one in sorted(found)]

    def prior_encoder(self, dataset: str, prior_id: str) -> RunSpec:
        """The autoencoder whose latents a prior is of."""
        spec = self.of_model(dataset, prior_id)
        return spec.uses[spec.method.latents]

    def images(self, dataset: str, run_id: str) -> str:
        return f"{self.root}/images/{dataset}/{run_id}/manifest.json"

    def judge(self, protocol: str) -> str:
        """Id of the segmenter that is trained for a protocol: what on and how; empty where none is trained."""
        card = self.protocol(protocol)
        recipe = card.trained_segmenter()
        if recipe is None:
            return ""
        return f"{recipe.name}-{stable_hash([self.card(card.dataset).identity(), recipe.model_dump()])}"

    def segmenter(self, judge: str) -> str:
        """The protocol's segmenter, where it is trained here."""
        return f"{self.root}/segmenters/{judge}/model.safetensors"

    def of_judge(self, judge: str) -> ProtocolCard:
        """Any protocol of this experiment that uses a segmenter (all of them agree on how it is trained)."""
        return next(s.protocol for s in self.runs if self.judge(s.protocol.name) == judge)

    def measuring_inputs(self, protocol: str, reference: bool = False) -> dict[str, str]:
        """What measuring under a protocol reads beside the images: pairs, a trained segmenter, companions."""
        card = self.protocol(protocol)
        judge = self.judge(protocol)
        inputs = {"segmenter": self.segmenter(judge)} if judge else {}
        if reference:
            return {"reference_pairs": self.pairs(card.dataset, card.reference.split), **inputs}
        inputs["pairs"] = self.pairs(card.dataset, card.split)
        if card.labels:
            inputs["full_labels"] = self.pairs(card.labels, card.split)
        if any(entry.stem in _STYLE_METRICS for entry in card.entries()):
            inputs["styles"] = self.pairs(card.dataset, "train")
        return inputs

    def measuring_options(self, protocol: str, reference: bool = False) -> str:
        """The same as options of `python -m evaluators measure`."""
        inputs = self.measuring_inputs(protocol, reference)
        return " ".join(f"--{name.replace('_', '-')} {path}" for name, path in inputs.items())

    def sampling_inputs(self, dataset: str, run_id: str) -> dict[str, str]:
        """What sampling a run reads."""
        spec = self.spec(dataset, run_id)
        inputs = {"pairs": self.pairs(dataset, spec.protocol.split)}
        if spec.model_id:
            inputs["model"] = self.model(dataset, spec.model_id)
        if spec.prior_id:
            inputs["prior"] = self.prior(dataset, spec.prior_id)
        if "references" in spec.method.needs:
            inputs["styles"] = self.pairs(dataset, "train")
        inputs |= self.used(spec, "sample")
        if spec.method.kind == "images" and spec.method.card is not None:
            inputs["folder"] = spec.folder
        return inputs

    def sampling_options(self, dataset: str, run_id: str) -> str:
        """The options of `sis sample` that only some methods need."""
        inputs = self.sampling_inputs(dataset, run_id)
        if "model" in inputs:
            inputs["model"] = _at_step(inputs["model"], self.spec(dataset, run_id))
        own = [f"--{name} {inputs[name]}" for name in ("model", "prior", "styles") if name in inputs]
        return " ".join([*own, *_uses_options(inputs)])

    def used(self, spec: RunSpec, stage: str) -> dict[str, str]:
        """The models of other methods that a stage, fit or sample, reads, each as `uses_<role>`."""
        return {f"uses_{r}": self.model(s.dataset.name, s.model_id) for r, s in spec.used(stage).items()}

    def training_inputs(self, dataset: str, model_id: str) -> dict[str, str]:
        """What training a model reads beside the pairs."""
        spec = self.of_model(dataset, model_id)
        return self.used(spec, "fit") | self.latents_input(spec)

    def latents_input(self, spec: RunSpec) -> dict[str, str]:
        """The encoded training split, for methods that read one."""
        return {"latents": self.latents(spec.dataset.name, spec.latents_id)} if spec.latents_id else {}

    def training_options(self, dataset: str, model_id: str) -> str:
        """The options of `sis train` that only some methods need."""
        inputs = self.training_inputs(dataset, model_id)
        own = [f"--latents {inputs['latents']}"] if "latents" in inputs else []
        return " ".join([*own, *_uses_options(inputs)])

    def prior_options(self, dataset: str, prior_id: str) -> str:
        """The options of `sis prior` that only some methods need."""
        inputs = self.latents_input(self.of_model(dataset, prior_id))
        return f"--latents {inputs['latents']}" if inputs else ""

    def encoder(self, dataset: str, latents_id: str) -> RunSpec:
        """The autoencoder of an encoded training split."""
        return self.of_model(dataset, latents_id.removesuffix(MIRRORED))

    def latents_ids(self) -> list[str]:
        """All encoded training splits."""
        return sorted({s.latents_id for s in self.every} - {""})

    @property
    def every(self) -> list[RunSpec]:
        """All runs and all models that they use."""
        return [*self.runs, *self.parts]

    def command(self, spec: RunSpec) -> str:
        """The shell command that makes a run's image set again, once its inputs exist."""
        manifest = self.images(spec.dataset.name, spec.run_id)
        if spec.given:
            return f"sis verify {manifest}"
        if spec.method.kind == "rule":
            return f"snakemake --profile workflow/profiles/local {manifest}"
        inputs = self.sampling_inputs(spec.dataset.name, spec.run_id)
        options = self.sampling_options(spec.dataset.name, spec.run_id)
        head = f"sis sample --experiment {self.experiment.name} --dataset {spec.dataset.name} --run {spec.name}"
        return " ".join(f"{head} --pairs {inputs['pairs']} {options} --out {manifest}".split())

    def reference(self, dataset: str, protocol: str) -> str:
        return f"{self.root}/partials/{dataset}/_reference/{protocol}/manifest.json"

    def partials(self, dataset: str, run_id: str, protocol: str) -> str:
        return f"{self.root}/partials/{dataset}/{run_id}/{protocol}/manifest.json"

    def scores(self, dataset: str, run_id: str, protocol: str) -> str:
        return f"{self.root}/scores/{dataset}/{run_id}/{protocol}.parquet"

    def published(self, name: str) -> str:
        return f"{self.settings.results.rstrip('/')}/{self.experiment.name}/{name}"

    def log(self, stage: str) -> str:
        """Where a rule without wildcards writes its log."""
        return f"logs/{stage}/{self.experiment.name}.log"

    def needs(self, stage: Stage, dataset: str) -> Needs:
        """What a job asks a cluster for that is no run's, as preparing a split; a run's: `RunSpec.needs`."""
        cards = (self.experiment.cluster, self.card(dataset).cluster)
        cluster = layered(*cards, device=self.settings.device)
        return complete(stage, self.experiment.threads, dataset, cluster)

    def protocol(self, name: str) -> ProtocolCard:
        return self._protocols.get(name) or files.named("protocols", name, ProtocolCard)

    def protocol_hash(self, name: str) -> str:
        """Changes with the protocol's card."""
        return stable_hash(self.protocol(name).model_dump())

    def spec(self, dataset: str, run: str) -> RunSpec:
        """The run called `run` (its name or its id) on a dataset."""
        here = [s for s in self.every if s.dataset.name == dataset]
        for spec in here:
            if run in (spec.name, spec.run_id):
                return spec
        if not here:
            known = sorted({s.dataset.name for s in self.every})
            raise SisError(
                f"experiment {self.experiment.name} has no dataset {dataset!r}",
                fix=did_you_mean(dataset, known),
            )
        raise SisError(
            f"experiment {self.experiment.name} has no run {run!r} on {dataset}",
            fix=did_you_mean(run, [s.name for s in here]),
        )

    def of_model(self, dataset: str, model_id: str) -> RunSpec:
        """Any run that uses a model or a prior (all of them agree on how it is made)."""
        return next(s for s in self.every if s.dataset.name == dataset and model_id in (s.model_id, s.prior_id))

    def models(self, imported: bool) -> list[str]:
        """Ids of the models that are imported from somebody's file, or of those that are trained here."""
        own = [s for s in self.every if s.model_id and not s.ensemble]
        return sorted({s.model_id for s in own if bool(s.checkpoint) == imported})

    def ensembles(self) -> list[str]:
        """Ids of the models that are means of others."""
        return sorted({s.model_id for s in self.every if s.ensemble})

    def ensemble_inputs(self, dataset: str, model_id: str) -> dict[str, list[str]]:
        """Scores and models of the members of an ensemble, in their order."""
        ensemble = self.of_model(dataset, model_id).ensemble
        members = ensemble.members if ensemble else ()
        scores = [self.scores(dataset, m.run_id, m.protocol.name) for m in members]
        return {"scores": scores, "models": [self.model(dataset, m.model_id) for m in members]}

    def ensemble_options(self, dataset: str, model_id: str) -> str:
        """The options of `sis average`; a member's model may be one that its training kept on the way."""
        inputs, ensemble = self.ensemble_inputs(dataset, model_id), self.of_model(dataset, model_id).ensemble
        members = ensemble.members if ensemble else ()
        models = [_at_step(path, m) for path, m in zip(inputs["models"], members, strict=True)]
        return f"--scores {' '.join(inputs['scores'])} --models {' '.join(models)}"

    def checkpoint(self, dataset: str, model_id: str) -> str:
        """The file of weights that a model is imported from."""
        return self.of_model(dataset, model_id).checkpoint

    def checkpoint_option(self, dataset: str, model_id: str) -> str:
        """The option of `sis checkpoint import` that says what the weights are, if the run says so."""
        weights = self.of_model(dataset, model_id).checkpoint_weights
        return f"--weights {weights}" if weights else ""

    def run_ids(self, *kinds: str, method: str = "") -> list[str]:
        """Ids of all runs, or of those of some kinds, or of one method."""
        every = not kinds and not method
        return sorted({s.run_id for s in self.runs if every or s.method.kind in kinds or s.method.name == method})

    def pattern(self, names: list[str]) -> str:
        """A regular expression that matches exactly these names, and nothing when there are none."""
        return "|".join(n.replace(".", r"\.") for n in names) or r"(?!)"

    def all_scores(self) -> list[str]:
        return [self.scores(s.dataset.name, s.run_id, s.protocol.name) for s in self.runs]

    def all_images(self) -> list[str]:
        return [self.images(s.dataset.name, s.run_id) for s in self.runs]

    def all_pairs(self) -> list[str]:
        """The splits that this experiment reads."""
        splits = {
            (s.dataset.name, x) for s in self.runs for x in ("train", s.protocol.split, s.protocol.reference.split)
        }
        return [self.pairs(*pair) for pair in sorted(splits)]

    def all_dataset_cards(self) -> list[str]:
        return [self.dataset_card(d) for d in self.experiment.datasets]

    def published_tables(self) -> list[str]:
        """The papers' own numbers that stand beside ours."""
        return [f"config/published/{name}.csv" for name in self.experiment.published]

    def artefacts(self) -> list[tuple[str, str]]:
        """(stage, path) of every artefact with a run record, in the order of the stages."""
        models = {("train", self.model(s.dataset.name, s.model_id)) for s in self.every if s.model_id}
        models |= {("train", self.latents(s.dataset.name, s.latents_id)) for s in self.every if s.latents_id}
        priors = {("prior", self.prior(s.dataset.name, s.prior_id)) for s in self.runs if s.prior_id}
        trained = {self.judge(s.protocol.name) for s in self.runs} - {""}
        judges = {("evaluate", self.segmenter(judge)) for judge in trained}
        judges |= {("evaluate", self.reference(s.dataset.name, s.protocol.name)) for s in self.runs}
        judged = [("evaluate", self.partials(s.dataset.name, s.run_id, s.protocol.name)) for s in self.runs]
        return [
            *[("prepare", p) for p in self.all_pairs()],
            *sorted(models),
            *sorted(priors),
            *[("sample", p) for p in self.all_images()],
            *sorted(judges),
            *judged,
            *[("evaluate", p) for p in self.all_scores()],
        ]


def _at_step(model: str, spec: RunSpec) -> str:
    """The file that a run samples from: its model, or the weights that the training kept at a step."""
    return str(kept_path(Path(model), spec.at_step)) if spec.at_step else model


def _uses_options(inputs: dict[str, str]) -> list[str]:
    roles = [name for name in inputs if name.startswith("uses_")]
    return [f"--uses {role.removeprefix('uses_')}={inputs[role]}" for role in roles]


def load_plan(overrides: dict[str, Any] | None = None, experiment: str = "") -> Plan:
    """Read the settings and the experiment, and resolve every run.

    Args:
        overrides: settings given on the command line (Snakemake's `config`).
        experiment: name or file of an experiment; empty: the one in the settings.
    """
    site = files.settings(overrides)
    chosen = files.experiment(experiment or site.experiment)
    known = methods()
    runs = dict(chosen.runs)
    if chosen.rule_methods == "all":
        runs |= {n: Run(method=n) for n, m in known.items() if m.kind == "rule" and n not in runs}
    specs, parts = [], []
    for dataset, use in chosen.datasets.items():
        card, protocol = files.dataset_card(dataset), files.named("protocols", use.protocol, ProtocolCard)
        if protocol.dataset != dataset:
            raise SisError(f"protocol {protocol.name} judges {protocol.dataset}, not {dataset}", where=chosen.name)
        here = Resolver(site, chosen, card, protocol, known, runs)
        specs += [here.spec(name) for name, run in runs.items() if not run.datasets or dataset in run.datasets]
        parts += [spec for name, spec in here.made.items() if name not in runs]
    return Plan(site, chosen, specs, parts)
