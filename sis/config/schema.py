# SPDX-License-Identifier: Apache-2.0
"""Schemas and documentation that follow from the configuration models."""

from __future__ import annotations

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticUndefined

from sis.config.cards import DatasetCard, MethodCard
from sis.config.experiment import Experiment, Settings
from sis.config.files import dataset_card, experiment, label_space, method_card, named, project_root, settings
from sis.config.judges import SegmenterPreset
from sis.config.models import BaseCard
from sis.config.prompts import PromptCard, prompt_card
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
    "base": ("config/bases/<name>.yaml", BaseCard),
    "prompts": ("config/prompts/<name>.yaml", PromptCard),
    "method": ("config/methods/<name>.yaml", MethodCard),
    "protocol": ("config/protocols/<name>.yaml", ProtocolCard),
    "segmenter": ("config/segmenters/<name>.yaml", SegmenterPreset),
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
        "segmenters": lambda name: named("segmenters", name, SegmenterPreset),
        "bases": lambda name: named("bases", name, BaseCard),
        "prompts": prompt_card,
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
        default = "required" if field.default is PydanticUndefined else _shown(field.default)
        meaning = (field.description or "").replace("|", r"\|").replace("<", r"\<")
        rows.append(f"| `{prefix}{name}` | {_kind(field.annotation)} | {default} | {meaning} |")
        inner, many = _section(field.annotation)
        if inner is not None:
            rows += _table(inner, f"{prefix}{name}.{'*.' if many else ''}")
    return rows


def _shown(default: object) -> str:
    return "as below" if isinstance(default, BaseModel) else f"`{json.dumps(default)}`"


_WORDS: dict[object, str] = {str: "text", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_ANY = {str, int, float, bool}


def _kind(annotation: object) -> str:
    """A type in words: constraints are left to the descriptions and to the JSON schemas."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if annotation is JsonValue:
        return "value"
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        words = [] if not set(inner) >= _ANY else ["value"]
        return " or ".join([*words, *(_kind(a) for a in inner if not words or a not in _ANY)])
    if origin is list:
        return f"list of {_several(_kind(inner[0]))}"
    if origin is dict:
        return f"mapping to {_several(_kind(inner[1]))}"
    own = [kind for kind, (_, model) in KINDS.items() if annotation is model]
    if own:
        return f"section as in [{own[0]}](#{own[0]}-{_anchor(KINDS[own[0]][0])})"
    return "section" if _is_model(annotation) else str(getattr(annotation, "__name__", annotation))


def _several(kind: str) -> str:
    return f"{kind}s" if kind.isalpha() else kind


def _anchor(place: str) -> str:
    """What a heading's link makes of a path."""
    return "".join(c for c in place if c.isalnum() or c in "_-")


def _section(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    """The section that a key holds, if its keys have no table of their own, and whether it holds many of them."""
    if _is_model(annotation):
        return (None, False) if any(annotation is model for _, model in KINDS.values()) else (annotation, False)
    many = get_origin(annotation) in (list, dict)
    for argument in get_args(annotation):
        found, repeated = _section(argument)
        if found is not None:
            return found, many or repeated
    return None, False


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
