# SPDX-License-Identifier: Apache-2.0
"""Finds methods by file stem, through three doors and a side entrance; reads Python files without importing them.

sis/methods/<name>.py (python), config/methods/<name>.yaml (command, images), workflow/rules/methods/<name>.smk (rule).
"""

from __future__ import annotations

import ast
import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sis.config.cards import MethodCard
from sis.config.files import method_card, project_root
from sis.errors import SisError, did_you_mean
from sis.methods.contract import Method

_NOT_METHODS = {"__init__", "contract", "discovery", "build"}


@dataclass(frozen=True)
class MethodInfo:
    """What the workflow needs to know about a method before anything is imported."""

    name: str
    kind: str
    title: str
    role: str
    path: Path
    trains: bool = False
    has_prior: bool = False
    deterministic: bool = False
    needs_photographs: bool = False
    version: int = 1
    card: MethodCard | None = None


def methods() -> dict[str, MethodInfo]:
    """Every method there is, by name. Raises SisError when two files claim one name."""
    root = project_root()
    found: dict[str, MethodInfo] = {}
    python = [p for p in sorted((root / "sis" / "methods").glob("*.py")) if p.stem not in _NOT_METHODS]
    rules = sorted((root / "workflow" / "rules" / "methods").glob("*.smk"))
    cards = sorted((root / "config" / "methods").glob("*.yaml"))
    named = {p.stem for p in python}
    for path in [*python, *rules, *[c for c in cards if c.stem not in named]]:
        if path.stem in found:
            raise SisError(f"two files define the method {path.stem!r}", where=f"{found[path.stem].path} and {path}")
        found[path.stem] = _describe(path)
    return found


def method_info(name: str) -> MethodInfo:
    """One method by name; an unknown name is answered with the nearest."""
    found = methods()
    if name not in found:
        raise SisError(f"no method called {name!r}", fix=did_you_mean(name, found))
    return found[name]


def method_class(name: str) -> type[Method]:
    """Import the class of a Python method."""
    info = method_info(name)
    if info.kind != "python":
        raise SisError(f"method {name!r} is of kind {info.kind}, not python", where=info.path)
    module = importlib.import_module(f"sis.methods.{name}")
    classes = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Method) and v is not Method]
    own = [c for c in classes if c.__module__ == module.__name__]
    if len(own) != 1:
        raise SisError(f"a method file holds exactly one Method class, found {len(own)}", where=info.path)
    return own[0]


def _describe(path: Path) -> MethodInfo:
    if path.suffix == ".yaml":
        card = method_card(path)
        if card.kind == "python":
            raise SisError("a card of kind python needs its file", where=path, fix=f"write sis/methods/{path.stem}.py")
        return MethodInfo(path.stem, card.kind, card.title, card.role, path, card=card)
    try:
        tree = ast.parse(path.read_text()) if path.suffix == ".py" else _docstring_only(path)
    except SyntaxError as error:
        raise SisError(f"not valid Python: {error.msg}", where=f"{path}:{error.lineno}") from error
    title = (ast.get_docstring(tree) or path.stem).splitlines()[0].split(":")[0].rstrip(".")
    if path.suffix == ".smk":
        return MethodInfo(path.stem, "rule", title, "contestant", path)
    body = [node for c in tree.body if isinstance(c, ast.ClassDef) for node in c.body]
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    facts = _literals(body)
    return MethodInfo(
        path.stem,
        "python",
        title,
        str(facts.get("ROLE", Method.ROLE)),
        path,
        trains="fit" in defined,
        has_prior="prior" in defined,
        deterministic=bool(facts.get("DETERMINISTIC", False)),
        needs_photographs="pairs" in facts.get("NEEDS", Method.NEEDS),
        version=int(facts.get("VERSION", Method.VERSION)),
    )


def _docstring_only(path: Path) -> ast.Module:
    """The docstring that opens a rule file (the rest is Snakemake's language, not Python)."""
    text = path.read_text().lstrip()
    end = text.find('"""', 3)
    return ast.parse(text[: end + 3] if text.startswith('"""') and end > 0 else "")


def _literals(body: list[ast.stmt]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for node in body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant | ast.Tuple):
                with suppress(ValueError):  # not made of literals: no fact of the harness
                    facts[target.id] = ast.literal_eval(value)
    return facts
