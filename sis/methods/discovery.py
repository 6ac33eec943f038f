# SPDX-License-Identifier: Apache-2.0
"""Finds methods by file stem, through three doors and a side entrance; reads Python files without importing them.

sis/methods/<name>.py (python), config/methods/<name>.yaml (command, images), workflow/rules/methods/<name>.smk (rule).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sis.config.cards import MethodCard
from sis.config.cluster import Cluster
from sis.config.files import method_card, project_root
from sis.errors import SisError, did_you_mean
from sis.methods.contract import Method, Use

_NOT_METHODS = {"__init__", "contract", "discovery", "build"}


@dataclass(frozen=True)
class MethodInfo:
    """What the workflow needs to know about a method before anything is imported."""

    name: str
    kind: str
    title: str
    role: str
    path: Path
    makes_images: bool = True
    trains: bool = False
    has_prior: bool = False
    deterministic: bool = False
    needs: tuple[str, ...] = ()
    photographs_when: dict[str, tuple[str, ...]] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    latents: str = ""
    mirrored: bool = False
    prior_of_latents: bool = False
    reference: str = "none"
    version: int = 1
    card: MethodCard | None = None
    cluster: Cluster = field(default_factory=dict)

    @property
    def is_part(self) -> bool:
        """Whether its models only serve other methods."""
        return not self.makes_images

    @property
    def needs_photographs(self) -> bool:
        """Whether every run of it shows the real photographs of the split that is judged."""
        return "pairs" in self.needs

    def shows_photographs(self, sample: Mapping[str, object]) -> bool:
        """Whether a run with these sampling parameters does."""
        return self.needs_photographs or any(sample.get(k) in v for k, v in self.photographs_when.items())


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
        return MethodInfo(path.stem, card.kind, card.title, card.role, path, card=card, cluster=card.cluster)
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
        makes_images="sample" in defined,
        trains="fit" in defined,
        has_prior="prior" in defined,
        deterministic=bool(facts.get("DETERMINISTIC", False)),
        needs=tuple(facts.get("NEEDS", Method.NEEDS)),
        photographs_when=dict(facts.get("PHOTOGRAPHS_WHEN", Method.PHOTOGRAPHS_WHEN)),
        uses=_uses(body, path),
        latents=str(facts.get("LATENTS", Method.LATENTS)),
        mirrored=bool(facts.get("MIRRORED", Method.MIRRORED)),
        prior_of_latents=bool(facts.get("PRIOR_OF_LATENTS", Method.PRIOR_OF_LATENTS)),
        reference=str(facts.get("REFERENCE", Method.REFERENCE)),
        version=int(facts.get("VERSION", Method.VERSION)),
        cluster=_cluster(facts.get("CLUSTER", Method.CLUSTER), path),
    )


def _docstring_only(path: Path) -> ast.Module:
    """The docstring that opens a rule file (the rest is Snakemake's language, not Python)."""
    text = path.read_text().lstrip()
    end = text.find('"""', 3)
    return ast.parse(text[: end + 3] if text.startswith('"""') and end > 0 else "")


def _literals(body: list[ast.stmt]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in _assigned(body):
        if isinstance(value, ast.Constant | ast.Tuple | ast.Dict):
            with suppress(ValueError):  # not made of literals: no fact of the harness
                facts[name] = ast.literal_eval(value)
    return facts


def _uses(body: list[ast.stmt], path: Path) -> dict[str, Use]:
    """`USES = {"role": Use(("method",), weights="fit")}` as it is written; raises SisError for anything else."""
    written = next((value for name, value in _assigned(body) if name == "USES"), None)
    if not isinstance(written, ast.Dict):
        return {}
    found: dict[str, Use] = {}
    for key, call in zip(written.keys, written.values, strict=True):
        if key is None or not isinstance(call, ast.Call):
            raise SisError("USES is no literal", where=path, fix='write it as {"role": Use(("method",))}')
        words = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        found[ast.literal_eval(key)] = Use(*(ast.literal_eval(a) for a in call.args), **words)
    return found


def _cluster(written: object, path: Path) -> Cluster:
    """`CLUSTER` as needs by stage; raises SisError where it says what there is not."""
    try:
        return TypeAdapter(Cluster).validate_python(written, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise SisError(f"CLUSTER: {place}: {fault['msg']}", where=path, fix="its keys: docs/configuration.md") from None


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    """Every `name = value` of a class body."""
    for node in body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, getattr(node, "value", None)
