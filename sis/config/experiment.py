# SPDX-License-Identifier: Apache-2.0
"""What to run: the experiment file and the site's settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sis.config.base import Name, StrictModel
from sis.config.cluster import CLUSTER_TEXT, Cluster, SlurmSite
from sis.config.models import USES_TEXT, ModelEntry, Params, Uses


class Change(StrictModel):
    """What a run or a model does otherwise on one dataset; keys that are left out stay."""

    fit: Params = Field(default={}, description="training parameters")
    sample: Params = Field(default={}, description="sampling parameters")
    prior: Params = Field(default={}, description="parameters of the prior")
    uses: Uses = Field(default={}, description="models, by role")


class FigureCard(StrictModel):
    """A plot of metrics against a parameter of the runs."""

    title: str = Field(description="headline")
    x: Name = Field(description="the parameter of the x axis; runs without it are left out")
    x_label: str = Field(default="", description="what stands below the axis; empty: the parameter")
    lines: Name | Literal[""] = Field(default="", description="the parameter that tells lines apart; empty: one line")
    metrics: list[Name] = Field(min_length=1, description="metrics, a plot each, side by side")
    dashed: list[Name] = Field(default=[], description="runs or groups that are a dashed line all across")


class DatasetUse(StrictModel):
    """One dataset of an experiment."""

    protocol: Name = Field(description="how its images are judged: a file of config/protocols")
    published: Name | Literal[""] = Field(
        default="", description="what the tables of config/published call it; empty: the same"
    )
    samples_per_map: int | None = Field(default=None, ge=1, description="images a label map; empty: the experiment's")
    changes: dict[Name, Change] = Field(
        default={}, description="what runs, groups of runs, or models do otherwise here"
    )


class EnsembleCard(StrictModel):
    """A model that is the mean of others: of those whose images were judged best."""

    members: list[Name] = Field(min_length=2, description="runs of this experiment whose networks are alike")
    best: int = Field(default=2, ge=1, description="so many of them are averaged")
    by: Name = Field(default="fid", description="the metric that decides, as the protocol names it")


class Run(StrictModel):
    """One row of the experiment's table."""

    method: Name = Field(description="a method: a file of sis/methods, config/methods or workflow/rules/methods")
    title: str = Field(default="", description="name in tables; empty: the method's own title")
    fit: Params = Field(default={}, description="training parameters that differ from the method's defaults")
    sample: Params = Field(default={}, description="sampling parameters that differ from the method's defaults")
    prior: Params = Field(default={}, description="parameters of its prior that differ from the method's defaults")
    uses: Uses = Field(default={}, description=USES_TEXT)
    seed: int = Field(default=0, ge=0, description="training seed")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="several training seeds: a run for each, named <run>-seed<n>, and a row for their mean",
    )
    group: Name | Literal[""] = Field(
        default="", description="runs that differ in their seed alone and share this name get a row for their mean"
    )
    checkpoint: str = Field(
        default="", description="file of somebody's weights that are imported instead of trained (docs/checkpoints.md)"
    )
    checkpoint_weights: Literal["", "ema", "raw"] = Field(
        default="", description="what those weights are; recorded, since no file tells"
    )
    at_step: int = Field(
        default=0, ge=0, description="sample from the weights that `fit: {keep: [...]}` kept at this step; 0: the last"
    )
    ensemble: EnsembleCard | None = Field(
        default=None, description="sample from the mean of other runs' weights instead of training"
    )
    samples_per_map: int | None = Field(default=None, ge=1, description="images a label map; empty: the experiment's")
    image_set: Name | Literal[""] = Field(
        default="", description="run id of an image set that is there already: it is judged as it is, nothing makes it"
    )
    datasets: list[Name] = Field(default=[], description="datasets of this run; empty: all of the experiment")
    published: str | None = Field(
        default="",
        description="variant in the papers' tables that this run reproduces; empty: their main setting; null: none",
    )
    cluster: Cluster = Field(default={}, description=CLUSTER_TEXT)


class Experiment(StrictModel):
    """An experiment (config/experiments/<name>.yaml): runs x datasets x protocol."""

    name: Name = Field(description="name of the experiment, equal to the file's stem")
    title: str = Field(description="headline of its results page")
    description: str = Field(default="", description="what it shows, for the results page")
    datasets: dict[Name, DatasetUse] = Field(min_length=1, description="datasets and their protocols")
    models: dict[Name, ModelEntry] = Field(
        default={}, description="models that runs use: autoencoders, base models, text embeddings"
    )
    runs: dict[Name, Run] = Field(min_length=1, description="the rows of the table")
    rule_methods: Literal["all", "none"] = Field(
        default="none", description="all: every file of workflow/rules/methods is a run too, by its stem"
    )
    samples_per_map: int = Field(default=1, ge=1, description="images drawn for each label map")
    sample_seed: int = Field(default=0, ge=0, description="seed of all sampling noise")
    batch_size: int = Field(default=16, ge=1, description="images sampled together; the last batch is padded")
    shard_size: int = Field(default=500, ge=1, description="images a shard")
    threads: int = Field(default=1, ge=1, description="CPU threads a job; part of what fixes the bits on a CPU")
    published: list[Name] = Field(default=[], description="tables of config/published shown beside ours")
    figures: dict[Name, FigureCard] = Field(default={}, description="plots against a parameter, by name")
    published_metrics: dict[Name, Name] = Field(
        default={}, description="our names of the papers' metrics where they differ, as `lpips: lpips-sdm`"
    )
    cluster: Cluster = Field(default={}, description=CLUSTER_TEXT)

    @model_validator(mode="before")
    @classmethod
    def _a_run_for_each_seed(cls, data: Any) -> Any:
        """Write `seeds: [0, 1]` of a run out as two runs of one group."""
        runs = data.get("runs") if isinstance(data, dict) else None
        if not isinstance(runs, dict):
            return data
        written: dict[str, Any] = {}
        for name, given in runs.items():
            run = given.model_dump(exclude_unset=True) if isinstance(given, Run) else given
            for single, facts in _singles(name, run).items():
                if single in written or (single in runs and single != name):
                    raise ValueError(f"runs.{name}: its seeds make a run {single!r}, which stands there already")
                written[single] = facts
        return {**data, "runs": written}

    @model_validator(mode="after")
    def _groups_differ_in_their_seed_alone(self) -> Self:
        first: dict[str, tuple[str, Run]] = {}
        seen: set[tuple[str, int]] = set()
        for name, run in self.runs.items():
            if not run.group:
                continue
            if (run.group, run.seed) in seen:
                raise ValueError(f"runs.{name}: group {run.group!r} has seed {run.seed} already")
            seen.add((run.group, run.seed))
            other, facts = first.setdefault(run.group, (name, run))
            alike = run.model_copy(update={"seed": facts.seed, "title": facts.title, "cluster": facts.cluster})
            if alike != facts:
                raise ValueError(f"runs.{name} and runs.{other} share a group and differ in more than their seed")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        twice = sorted(set(self.models) & set(self.runs))
        if twice:
            raise ValueError(f"models.{twice[0]} and runs.{twice[0]} share a name")
        return self

    @model_validator(mode="after")
    def _figures_and_changes_name_runs(self) -> Self:
        known = {*self.runs, *self.models, *(run.group for run in self.runs.values())}
        named = [(f"figures.{n}.dashed", d) for n, card in self.figures.items() for d in card.dashed]
        named += [(f"datasets.{n}.changes", c) for n, use in self.datasets.items() for c in use.changes]
        for place, name in named:
            if name not in known:
                raise ValueError(f"{place}: no run, group or model is called {name!r}")
        return self

    @model_validator(mode="after")
    def _published_words_have_tables(self) -> Self:
        """Words about the papers' tables, and no table named, are a forgotten line."""
        words = [f"runs.{n}.published" for n, run in self.runs.items() if run.published]
        words += [f"datasets.{n}.published" for n, use in self.datasets.items() if use.published]
        words += ["published_metrics"] if self.published_metrics else []
        if words and not self.published:
            raise ValueError(f"{words[0]} needs `published:`, the tables of config/published that it speaks of")
        if len(set(self.published)) < len(self.published):
            raise ValueError("published: a table is named twice")
        return self


def _singles(name: str, run: Any) -> dict[str, Any]:
    """One run for each of `seeds`, by name; a run without them, or one that validation will refuse, as it is."""
    seeds = run.get("seeds") if isinstance(run, dict) else None
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        return {name: run}
    if "seed" in run or "group" in run:
        raise ValueError(f"runs.{name}: `seeds` stands in for `seed` and `group`; keep one of them")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"runs.{name}.seeds: a seed is named twice")
    rest = {key: value for key, value in run.items() if key != "seeds"}
    return {f"{name}-seed{seed}": {**rest, "seed": seed, "group": name} for seed in seeds}


class Settings(StrictModel):
    """A site's settings (config/config.yaml)."""

    experiment: Name = Field(default="demo", description="which experiment: a file of config/experiments")
    artefacts: str = Field(default="artefacts", description="root of everything between the stages; may be large")
    results: str = Field(default="results", description="root of published tables and pages")
    data: str = Field(default="data", description="root of the raw datasets, a folder for each")
    roots: dict[Name, str] = Field(default={}, description="folders of single datasets that lie elsewhere")
    prepare: list[Name] = Field(
        default=[], description="datasets that `snakemake prepare` prepares; empty: those of the experiment"
    )
    weights: str = Field(default="weights", description="folder with external weight files")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    launcher: Literal["inline", "local", "slurm"] = Field(
        default="inline", description="where training and sampling run; workflow/profiles/slurm says slurm by itself"
    )
    slurm: SlurmSite = Field(default=SlurmSite(), description="this site's Slurm (docs/slurm.md)")
