# SPDX-License-Identifier: Apache-2.0
"""The one-way street: who may import whom, read from the source without importing it.

The rule that is enforced (imports inside functions count, imports under `if TYPE_CHECKING` do not):

    ground      sis.errors, sis.progress, sis.notice, sis.device, sis.torchvision_ops, sis.config, sis.data
                (among the last two only: sis.data.labels and manifest are words of the cards)
    mathematics sis.nets, sis.diffusion, sis.priors                    may import the ground and each other
    contract    sis.methods.contract, sis.methods.discovery            ... the ground and mathematics
    plan        sis.plan, sis.plan_cluster, sis.needs, sis.run_spec, sis.resolve
                                                                       ... the ground and the contract
    launch      sis.launch                                             ... the ground, the contract and the plan
    checkpoints sis.checkpoints                                        ... the ground and mathematics
    methods     every other file of sis.methods                        ... the ground, mathematics, contract and
                                                                       checkpoints; never another method
    stages      sis.training, sis.sampling, sis.publish                ... everything above, never one another
    project     sis.project                                            ... everything above
    entrance    sis.cli, sis.__main__, sis                             ... everything above

    evaluators  imports of sis: the ground alone, and of that neither sis.data.prepare nor sis.device
    sis         never imports evaluators; nothing imports workflow, tests or examples
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS: dict[str, tuple[str, ...]] = {
    "ground": (
        *("sis.errors", "sis.progress", "sis.notice", "sis.device", "sis.torchvision_ops", "sis.config", "sis.data"),
    ),
    "mathematics": ("sis.nets", "sis.diffusion", "sis.priors"),
    "contract": ("sis.methods.contract", "sis.methods.discovery"),
    "plan": ("sis.plan", "sis.plan_cluster", "sis.needs", "sis.run_spec", "sis.resolve"),
    "launch": ("sis.launch",),
    "checkpoints": ("sis.checkpoints",),
    "methods": ("sis.methods",),
    "training": ("sis.training",),
    "sampling": ("sis.sampling",),
    "publish": ("sis.publish",),
    "project": ("sis.project",),
    "entrance": ("sis.cli", "sis.__main__", "sis"),
}
_BELOW_STAGES = {"ground", "mathematics", "contract", "plan", "checkpoints", "methods"}
ALLOWED: dict[str, set[str]] = {
    "ground": {"ground"},
    "mathematics": {"ground", "mathematics"},
    "contract": {"ground", "mathematics", "contract"},
    "plan": {"ground", "contract", "plan"},
    "launch": {"ground", "contract", "plan", "launch"},
    "checkpoints": {"ground", "mathematics", "checkpoints"},
    "methods": {"ground", "mathematics", "contract", "checkpoints", "methods"},
    "training": {*_BELOW_STAGES, "training"},
    "sampling": {*_BELOW_STAGES, "sampling"},
    "publish": {*_BELOW_STAGES, "publish"},
    "project": {*_BELOW_STAGES, "launch", "training", "sampling", "publish", "project"},
    "entrance": set(LAYERS),
}


def layer(module: str) -> str:
    """The layer of a module: that of the longest prefix listed."""
    matches = [(len(p), name) for name, ps in LAYERS.items() for p in ps if module == p or module.startswith(p + ".")]
    return max(matches)[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(p): p for folder in ("sis", "evaluators") for p in sorted((ROOT / folder).rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, inside_functions: bool = True) -> set[str]:
    """Dotted names of all modules that a tree imports, as far as they are ours."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            base = str(node.module)
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in SOURCES else base for a in node.names}
        if isinstance(node, ast.If) and is_type_checking(node):
            waiting += node.orelse
        elif inside_functions or not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


GRAPH = {name: imports(ast.parse(path.read_text())) for name, path in SOURCES.items()}
SIS = sorted(n for n in SOURCES if n.split(".")[0] == "sis")


def test_the_graph_is_not_empty() -> None:
    assert len(SIS) > 40 and "sis.errors" in GRAPH["sis.data.images"]
    assert "sis.training.train" in GRAPH["sis.cli_runs"], "imports inside functions count"
    assert "sis.training.loop" not in GRAPH["sis.methods.contract"], "imports for type checkers do not"


def test_a_module_imports_only_what_lies_below_it() -> None:
    ours = [(n, i) for n in SIS for i in GRAPH[n] if i.split(".")[0] == "sis" and i != "sis"]
    against = [(n, i) for n, i in ours if layer(i) not in ALLOWED[layer(n)]]
    assert not [f"{n} ({layer(n)}) imports {i} ({layer(i)})" for n, i in against]


def test_a_method_never_imports_another_method() -> None:
    names = [n for n in SIS if layer(n) == "methods" and n != "sis.methods"]
    assert "sis.methods.sdm" in names
    assert not [(n, i) for n in names for i in GRAPH[n] if i in names]


def test_sis_never_imports_the_evaluators() -> None:
    assert not [(n, i) for n in SIS for i in GRAPH[n] if i.split(".")[0] == "evaluators"]


def test_the_evaluators_know_nothing_of_how_images_are_made() -> None:
    allowed = ("sis.data.", "sis.config.", "sis.errors", "sis.torchvision_ops", "sis.progress")
    foreign = [
        (n, i)
        for n in SOURCES
        if n.split(".")[0] == "evaluators"
        for i in GRAPH[n]
        if i.split(".")[0] == "sis" and not i.startswith(allowed)
    ]
    assert not foreign
    assert not [n for n, i in GRAPH.items() if n.startswith("evaluators") and "sis.data.prepare" in i]


def test_only_command_lines_of_the_evaluators_show_progress() -> None:
    found = [n for n, i in GRAPH.items() if n.startswith("evaluators") and "sis.progress" in i]
    assert "evaluators.cli" in found and not [name for name in found if not name.endswith("cli")]


def test_nothing_imports_the_workflow_the_tests_or_the_examples() -> None:
    beyond = {"workflow", "tests", "examples", "snakemake"}
    assert not [(n, i) for n, found in GRAPH.items() for i in found if i.split(".")[0] in beyond]


def test_no_module_imports_itself_in_a_circle_when_loaded() -> None:
    at_load = {n: imports(ast.parse(p.read_text()), inside_functions=False) & set(SOURCES) for n, p in SOURCES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in at_load[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in SOURCES:
        visit(name, ())


@pytest.mark.parametrize("module", ["sis.cli", "sis.plan", "sis.methods.discovery", "evaluators.cli"])
def test_heavy_packages_are_not_loaded_at_the_door(module: str) -> None:
    heavy = {"torch", "pandas", "matplotlib", "torchvision", "scipy", "snakemake", "diffusers"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == []


def test_the_whole_plan_is_made_without_heavy_packages() -> None:
    code = (
        "import sys; from sis.plan import load_plan; p = load_plan(experiment='tiny'); p.artefacts(); "
        "print(*({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == []
