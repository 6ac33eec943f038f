# SPDX-License-Identifier: Apache-2.0
"""Default training parameters of a method, read from its source without importing it (and torch)."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

from sis.config.recipe import Recipe


def fit_defaults(path: Path) -> dict[str, Any]:
    """Defaults of `FitParams` in a method's file, inherited ones too; those that are no literals are left out."""
    return dict(_defaults(path, "FitParams")) if path.suffix == ".py" else {}


@functools.cache
def _defaults(path: Path, name: str) -> dict[str, Any]:
    if name == "Recipe":
        return {key: field.get_default(call_default_factory=True) for key, field in Recipe.model_fields.items()}
    tree = ast.parse(path.read_text())
    written = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if written is None:
        source = _imported_from(tree, name, path)
        return _defaults(source, name) if source else {}
    found: dict[str, Any] = {}
    for base in reversed(written.bases):  # the first base counts most
        if isinstance(base, ast.Name):
            found |= _defaults(path, base.id)
    return found | _own(written)


def _own(written: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in written.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            value = node.value
            if isinstance(value, ast.Call):
                value = next((k.value for k in value.keywords if k.arg == "default"), value)
            try:
                found[node.target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _imported_from(tree: ast.Module, name: str, path: Path) -> Path | None:
    """The file of a module of this package that a name is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            package, *rest = node.module.split(".")
            roots = [parent for parent in path.parents if parent.name == package]
            file = roots[0].joinpath(*rest).with_suffix(".py") if roots and rest else None
            return file if file is not None and file.is_file() else None
    return None
