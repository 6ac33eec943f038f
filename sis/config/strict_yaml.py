# SPDX-License-Identifier: Apache-2.0
"""YAML without surprises: duplicate keys, unknown keys and lossy scalars are errors with file and line."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sis.errors import SisError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]


def load_yaml(path: Path | str) -> tuple[Any, dict[Location, int]]:
    """Read a YAML file; return its data and the line number of every value and key.

    Raises SisError for unreadable files, syntax errors, duplicate keys, non-text keys, anchors' merges and tags.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SisError("no such configuration file", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SisError(f"cannot read the configuration: {error}", where=path) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise SisError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from error
    if node is None:
        return {}, {}
    lines: dict[Location, int] = {}
    try:
        return _value(node, (), lines, path), lines
    except RecursionError:
        raise SisError("values nest too deeply, or one contains itself", where=path) from None


def load_model(path: Path | str, model: type[Model], overrides: dict[str, Any] | None = None) -> Model:
    """Read a YAML file into a configuration model. `overrides` replace top-level keys before validation.

    Raises SisError naming file, line, key and, for unknown keys, the nearest valid name.
    """
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise SisError("the file must hold a mapping of keys to values", where=path)
    return validate(model, {**data, **(overrides or {})}, path, lines)


def validate(model: type[Model], data: Any, where: object, lines: dict[Location, int] | None = None) -> Model:
    """Validate plain data against a model; the first fault becomes a one-line SisError."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key is both unknown and missing; the unknown one is where the mistake stands.
        fault = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        line = _line(tuple(fault["loc"]), lines or {})
        raise SisError(_explain(model, fault), where=f"{where}:{line}" if line else where) from error


def _value(node: yaml.Node, at: Location, lines: dict[Location, int], path: Path) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            here = f"{path}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise SisError("keys must be plain text (no merges)", where=here)
            if key in result:
                raise SisError(f"duplicate key {key!r}", where=here, fix="keep one of them")
            lines[(*at, key)] = key_node.start_mark.line + 1
            result[key] = _value(value_node, (*at, key), lines, path)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*at, i), lines, path) for i, child in enumerate(node.value)]
    return _scalar(typing.cast(yaml.ScalarNode, node), f"{path}:{line}")


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    known = {f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "null")}
    if node.tag not in known:
        raise SisError(f"value {node.value!r} has the unsupported type {node.tag.split(':')[-1]}", where=where)
    if node.style is None and node.tag.endswith((":bool", ":int")) and not _is_plain_literal(node.value):
        raise SisError(
            f"ambiguous value {node.value!r}",
            where=where,
            fix="write true or false, a plain number, or quote the text",
        )
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise SisError(f"value {node.value!r} cannot be read", where=where) from error


def _is_plain_literal(text: str) -> bool:
    digits = text.lstrip("+-").replace("_", "")
    return text in ("true", "false") or (digits.isdigit() and (digits == "0" or not digits.startswith("0")))


def _line(location: tuple[str | int, ...], lines: dict[Location, int]) -> int | None:
    while location and location not in lines:
        location = location[:-1]
    return lines.get(location)


def _explain(model: type[BaseModel], fault: Any) -> str:
    location, kind = fault["loc"], fault["type"]
    name = ".".join(str(part) for part in location) or "the file"
    if kind == "extra_forbidden":
        return f"unknown key {name!r}; {did_you_mean(str(location[-1]), _keys_at(model, location[:-1]))}"
    if kind == "missing":
        return f"missing key {name!r}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = fault.get("input")
    if kind == "float_type" and isinstance(given, str) and _looks_like_number(given):
        return (
            f"{name}: {given!r} is text in YAML, not a number; write {float(given)!r} (a dot and a sign, as in 1.0e-4)"
        )
    if kind == "value_error":
        return f"{name}: {message}"
    return f"{name}: should be {message}, found {given!r} ({type(given).__name__})"


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _keys_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The field names that are valid at a location inside a model."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _innermost(current.model_fields[str(part)].annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def _innermost(annotation: Any) -> Any:
    """Look through containers and unions for the model inside an annotation."""
    for argument in typing.get_args(annotation):
        inner = _innermost(argument)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return annotation
