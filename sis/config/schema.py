# SPDX-License-Identifier: Apache-2.0
"""Schemas and documentation that follow from the configuration models."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sis.config.cards import DatasetCard, MethodCard
from sis.config.experiment import Experiment, Settings
from sis.config.files import dataset_card, experiment, label_space, method_card, named, project_root, settings
from sis.config.protocols import ProtocolCard
from sis.data.atomic import write_text_atomic
from sis.data.labels import LabelSpace
from sis.errors import SisError

#: Every kind of configuration file: where it lies and its model.
KINDS: dict[str, tuple[str, type[BaseModel]]] = {
    "settings": ("config/config.yaml", Settings),
    "experiment": ("config/experiments/<name>.yaml", Experiment),
    "dataset": ("config/datasets/<name>.yaml", DatasetCard),
    "labels": ("config/labels/<name>.yaml", LabelSpace),
    "method": ("config/methods/<name>.yaml", MethodCard),
    "protocol": ("config/protocols/<name>.yaml", ProtocolCard),
}


def schema_text() -> str:
    """All JSON schemas in one document, by kind of file."""
    return json.dumps({kind: model.model_json_schema() for kind, (_, model) in KINDS.items()}, indent=2)


def write_schemas(folder: Path) -> list[Path]:
    """Write one `<kind>.schema.json` a kind, for editors; returns the files."""
    paths = []
    for kind, (_, model) in KINDS.items():
        paths.append(folder / f"{kind}.schema.json")
        write_text_atomic(paths[-1], json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n")
    return paths


def markdown() -> str:
    """docs/configuration.md: every key of every file with type, default and meaning."""
    parts = [
        "# Configuration",
        "Made by `sis config docs` from the models in `sis/config`; a test keeps it true. YAML is read strictly:",
        "unknown keys, duplicate keys, text where a number belongs (`1e-4` is text in YAML, `1.0e-4` is a number) and",
        "`yes`/`no` are errors that name the file, the line and the nearest valid name. `sis config check` reads every",
        "file; `sis config schema --out DIR` writes JSON schemas for editors.",
    ]
    for kind, (place, model) in KINDS.items():
        parts += ["", f"## {kind}: `{place}`", "", (model.__doc__ or "").splitlines()[0], "", *_table(model)]
    return "\n".join(parts)


def check_all() -> str:
    """Load every configuration file of the project; raises SisError at the first that is wrong."""
    config = project_root() / "config"
    settings()
    loaders = {
        "experiments": experiment,
        "datasets": dataset_card,
        "labels": label_space,
        "protocols": lambda name: named("protocols", name, ProtocolCard),
        "methods": lambda name: method_card(config / "methods" / f"{name}.yaml"),
    }
    count = 1
    for folder, load in loaders.items():
        for path in sorted((config / folder).glob("*.yaml")):
            load(path.stem)
            count += 1
    stray = sorted(config.rglob("*.yml"))
    if stray:
        raise SisError("configuration files end in .yaml", where=stray[0])
    return f"{count} configuration files are valid"


def _table(model: type[BaseModel], prefix: str = "") -> list[str]:
    rows = [] if prefix else ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        inner = _nested(field.annotation)
        default = "required" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {_kind(field.annotation)} | {default} | {field.description or ''} |")
        if inner is not None:
            star = "" if isinstance(field.annotation, type) else "*."
            rows += _table(inner, f"{prefix}{name}.{star}")
    return rows


def _shown(value: object) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump())
    return json.dumps(value)


def _kind(annotation: object) -> str:
    name = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    for noise in ("typing.", "typing_extensions.", "sis.config.cards.", "sis.config.experiment.", "sis.data.labels."):
        name = str(name).replace(noise, "")
    if "Annotated[" in str(name) or "sis." in str(name):
        name = "list" if "list" in str(name) else "mapping" if "dict" in str(name) else "text"
    return str(name).replace("|", "or")


def _nested(annotation: object) -> type[BaseModel] | None:
    import typing

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _nested(argument)
        if found is not None:
            return found
    return None
