# SPDX-License-Identifier: Apache-2.0
"""Finds and loads configuration files by name."""

from __future__ import annotations

import functools
import shlex
import string
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from sis.config.cards import DatasetCard, MethodCard
from sis.config.experiment import Experiment, Settings
from sis.config.strict_yaml import load_model, load_yaml, validate
from sis.data.labels import LabelSpace
from sis.errors import SisError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)
AD_HOC = ("experiments", "protocols")


@functools.cache
def project_root(start: Path | None = None) -> Path:
    """The folder with `Snakefile` and `config/`: the current one, a parent of it, or the installed checkout."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "Snakefile").is_file() and (folder / "config").is_dir():
            return folder
    raise SisError("no project here (no Snakefile beside config/)", where=here, fix="run inside a checkout")


def config_file(kind: str, name: str) -> Path:
    """The file of config/<kind>/ called `name`; a path to a YAML file is taken as it is."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = project_root() / "config" / kind
    path = folder / f"{name}.yaml"
    if not path.is_file() and kind in AD_HOC and (ad_hoc(kind) / path.name).is_file():
        return ad_hoc(kind) / path.name
    if not path.is_file():
        known = names(kind)
        raise SisError(f"no {kind.rstrip('s')} called {name!r}", where=folder, fix=did_you_mean(name, known))
    return path


def names(kind: str) -> list[str]:
    """Every name of config/<kind>/."""
    return sorted(path.stem for path in (project_root() / "config" / kind).glob("*.yaml"))


def ad_hoc(kind: str) -> Path:
    """Where `sis eval` keeps the experiments and protocols that it composes; those of config/ come first."""
    return project_root() / settings().artefacts / "eval" / kind


def named(kind: str, name: str, model: type[Model]) -> Model:
    """Load config/<kind>/<name>.yaml; the name inside must equal the file's stem."""
    path = config_file(kind, name)
    loaded = load_model(path, model)
    inside = getattr(loaded, "name", path.stem)
    if inside != path.stem:
        raise SisError(f"name: {inside!r} differs from the file's name {path.stem!r}", where=path)
    return loaded


def settings(overrides: dict | None = None) -> Settings:
    """config/config.yaml with `overrides` (Snakemake's --config) on top."""
    return load_model(project_root() / "config" / "config.yaml", Settings, overrides)


def experiment(name: str) -> Experiment:
    """An experiment by name or file, with every dataset a run names checked."""
    loaded = named("experiments", name, Experiment)
    for run_name, run in loaded.runs.items():
        for dataset in run.datasets:
            if dataset not in loaded.datasets:
                fix = did_you_mean(dataset, loaded.datasets)
                raise SisError(
                    f"run {run_name!r} names dataset {dataset!r}",
                    where=config_file("experiments", name),
                    fix=fix,
                )
    return loaded


def dataset_card(name: str) -> DatasetCard:
    """A dataset's card by name or file, filled in from the card that it is `like`.

    Raises SisError for circles, and without `subset:` for split counts that differ from that card's and for a card
    that is like a part of a dataset.
    """
    path = config_file("datasets", name)
    data, lines, base = _card_data(path, ())
    card = validate(DatasetCard, data, path, lines)
    if card.name != path.stem:
        raise SisError(f"name: {card.name!r} differs from the file's name {path.stem!r}", where=path)
    if base.get("subset") and not card.subset:
        fault = f"{card.like} is a part ({base['subset']}) of its dataset, and so is a card like it"
        raise SisError(fault, where=path, fix="give `subset:` and end the name in it")
    if base and not card.subset and card.prepare.fidelity == "paper":
        for split, facts in base.get("splits", {}).items():
            if card.splits[split].count != facts["count"]:
                raise SisError(
                    f"split {split} has {card.splits[split].count} pairs, {card.like} has {facts['count']}",
                    where=path,
                    fix="a part of a dataset says so: give `subset:` and end the name in it",
                )
    return card


def _card_data(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict, dict[str, Any]]:
    """A card's data with those of its ancestors filled in, its own line numbers, and its parent's data."""
    if path in seen:
        raise SisError("this card is like itself", where=path, fix="end the circle of `like:`")
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise SisError("the file must hold a mapping of keys to values", where=path)
    base: dict[str, Any] = {}
    if isinstance(data.get("like"), str) and data["like"]:
        base = _card_data(config_file("datasets", data["like"]), (*seen, path))[0]
        inherited = {k: v for k, v in base.items() if k not in ("name", "like", "subset")}
        # Its raw files lie where the other's lie, unless it says otherwise.
        inherited.setdefault("root", base["name"])
        data = _filled(inherited, data)
    if isinstance(data.get("labels"), dict):
        data["labels"] = {"name": data.get("name"), **data["labels"]}
    return data, lines, base


def _filled(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, section by section."""
    both = {k: _filled(base[k], own[k]) for k in own if isinstance(own[k], dict) and isinstance(base.get(k), dict)}
    return {**base, **own, **both}


def label_space(labels: str | LabelSpace) -> LabelSpace:
    """A label table by name; a table that a card holds itself is taken as it is."""
    return labels if isinstance(labels, LabelSpace) else named("labels", labels, LabelSpace)


def dataset_root(card: DatasetCard, site: Settings) -> Path:
    """The folder with a dataset's raw files; relative paths start at the project's root."""
    chosen = site.roots.get(card.name) or site.roots.get(card.root) or f"{site.data}/{card.root or card.name}"
    path = Path(chosen).expanduser()
    return path if path.is_absolute() else project_root() / path


def method_card(path: Path) -> MethodCard:
    """A method's card, with templates that can be filled in."""
    card = load_model(path, MethodCard)
    check_template(card.command, dict.fromkeys(("labels", "out", "ids", "seed"), "x"), path)
    check_template(card.pattern, {"image_id": "x", "sample": 0}, path)
    check_template(card.path, {"dataset": "x"}, path)
    try:
        shlex.split(card.command)
    except ValueError as error:
        raise SisError(f"command: {error}", where=path, fix="close every quotation") from error
    return card


def check_template(text: str, example: dict[str, str | int], where: object) -> None:
    """Raise SisError unless `text` can be formatted with values like those of `example`."""
    try:
        unknown = {f for _, f, _, _ in string.Formatter().parse(text) if f is not None} - set(example)
        if not unknown:
            text.format(**example)
            return
        fault = f"unknown field {{{sorted(unknown)[0]}}} in a template"
    except (ValueError, LookupError) as error:
        fault = f"not a template: {text!r} ({error})"
    raise SisError(fault, where=where, fix=f"known: {sorted(example)}")
