# SPDX-License-Identifier: Apache-2.0
"""House rules that no linter knows; each test lists the places that break its rule."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES = 400, 60
VAGUE = {"utils", "util", "helpers", "helper", "misc", "manager", "common"}
#: Command lines answer on standard output.
MAY_PRINT = {"sis/cli.py", "sis/cli_checkpoint.py", "sis/cli_cluster.py", "sis/cli_eval.py", "sis/cli_latent.py",
             "sis/cli_prior.py", "sis/project/check.py"}  # fmt: skip
#: Readers of other people's pickles that resolve every name themselves.
RESTRICTED = {"sis/data/jittor_files.py", "sis/priors/pickled.py"}
#: Columns and numbers that their callers name are data, not options.
OPEN_ENDED = {"columns", "numbers"}


def parsed(*folders: str) -> dict[str, tuple[str, ast.Module]]:
    """Text and tree of every Python file below some folders, by its path in the project."""
    paths = sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))
    texts = {p.relative_to(ROOT).as_posix(): p.read_text() for p in paths}
    return {path: (text, ast.parse(text)) for path, text in texts.items()}


LIBRARY = parsed("sis", "evaluators")
EVERYTHING = LIBRARY | parsed("tests", "examples", "benchmarks")


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, (_, tree) in LIBRARY.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{node.lineno} {node.name}", node


def calls() -> Iterator[tuple[str, str, dict[str | None, str]]]:
    """Place, dotted name and keywords of every call in the library."""
    for path, (_, tree) in LIBRARY.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield f"{path}:{node.lineno}", ast.unparse(node.func), keywords


def test_every_source_file_is_seen() -> None:
    assert len(LIBRARY) > 70 and {"sis/cli.py", "evaluators/cli.py"} <= set(LIBRARY)
    assert len(list(functions())) > 400 and len(list(calls())) > 1000


def test_files_are_short() -> None:
    assert not [p for p, (text, _) in LIBRARY.items() if len(text.splitlines()) > FILE_LINES]


def test_functions_are_short() -> None:
    assert not [place for place, f in functions() if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES]


def test_a_file_begins_with_its_licence() -> None:
    licence = "# SPDX-License-Identifier: Apache-2.0\n"
    assert not [path for path, (text, _) in EVERYTHING.items() if not text.startswith(licence)]


def test_a_module_begins_with_a_sentence() -> None:
    assert not [path for path, (_, tree) in LIBRARY.items() if not (ast.get_docstring(tree) or "").strip()]


def test_nothing_is_left_to_be_done() -> None:
    word = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    assert not [path for path, (text, _) in LIBRARY.items() if word.search(text)]


def test_nothing_is_pickled() -> None:
    pickles, found = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}, []
    for path, (_, tree) in LIBRARY.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and path not in RESTRICTED:
                found += [f"{path}:{node.lineno}" for a in node.names if a.name in pickles]
            if isinstance(node, ast.ImportFrom) and node.module in pickles:
                # The exception is needed to refuse what torch refuses; nothing else is.
                found += [f"{path}:{node.lineno}" for a in node.names if a.name != "UnpicklingError"]
    assert not found


def test_foreign_pickles_are_read_by_readers_that_resolve_every_name_themselves() -> None:
    for path in RESTRICTED:
        nodes = list(ast.walk(LIBRARY[path][1]))
        used = [n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"]
        assert {n.attr for n in used} == {"Unpickler", "UnpicklingError"}
        readers = [n for n in nodes if isinstance(n, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, n.bases)]
        assert readers and len([n for n in used if n.attr == "Unpickler"]) == len(readers)
        for reader in readers:
            own = {n.name for n in reader.body if isinstance(n, ast.FunctionDef)}
            assert "find_class" in own


def test_weights_and_arrays_are_loaded_without_running_code() -> None:
    loads = [(place, k.get("weights_only")) for place, name, k in calls() if name == "torch.load"]
    assert not [place for place, only in loads if only != "True"]
    arrays = [(place, k.get("allow_pickle", "False")) for place, name, k in calls() if name == "np.load"]
    assert not [place for place, pickled in arrays if pickled != "False"]
    assert not [place for place, name, _ in calls() if name in ("eval", "exec", "yaml.load")]
    # Only checkpoints for other people's code are what torch saves.
    assert [p.split(":")[0] for p, name, _ in calls() if name == "torch.save"] == ["sis/data/weight_files.py"]


def test_no_shell_is_started() -> None:
    assert not [place for place, name, k in calls() if name == "os.system" or k.get("shell") == "True"]


def test_the_library_does_not_print() -> None:
    assert not [place for place, name, _ in calls() if name == "print" and place.split(":")[0] not in MAY_PRINT]


def test_no_file_has_a_vague_name() -> None:
    assert not [path for path in EVERYTHING if VAGUE & set(Path(path).with_suffix("").parts)]


def test_public_functions_take_no_unnamed_options() -> None:
    public = [(place, f.args.kwarg) for place, f in functions() if not f.name.startswith("_")]
    assert not [place for place, kwarg in public if kwarg is not None and kwarg.arg not in OPEN_ENDED]


def test_public_functions_say_what_they_return() -> None:
    assert not [place for place, f in functions() if f.returns is None and f.name != "__init__"]


def test_no_file_names_a_machine() -> None:
    place = re.compile(r"""(?:^|[\s"'(=])/(?:home|root|work|Users)/""")
    assert not [path for path, (text, _) in EVERYTHING.items() if place.search(text)]
