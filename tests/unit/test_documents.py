# SPDX-License-Identifier: Apache-2.0
"""Documents that follow from the code say what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sis.config import schema

ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_page_is_what_the_models_say() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text().rstrip("\n")
    assert written == schema.markdown(), "run: sis config docs > docs/configuration.md"


def test_every_configuration_key_has_a_description() -> None:
    rows = [line for line in schema.markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert all(row.rsplit("|", 2)[1].strip() for row in rows)


def test_types_are_shown_in_words() -> None:
    rows: dict[str, str] = {}  # of a key in two kinds of file the first
    for row in (r for r in schema.markdown().splitlines() if r[:3] == "| `"):
        rows.setdefault(row.split("|")[1].strip(" `"), row.split("|")[2].strip())
    assert rows["splits"] == "mapping to sections" and rows["splits.*.image"] == "text or list of texts"
    assert rows["prepare.fidelity"] == "`paper` or `release`" and rows["edges"] == "boolean"
    assert rows["size"] == "list of integers" and rows["runs.*.fit"] == "mapping to value or list of values"
    assert rows["labels"].startswith("text or section as in [labels](#labels-") and "labels.classes" not in rows
    code = re.compile(r"typing|Annotated|Literal|sis\.|\bdict\b|NoneType|None")
    assert not [key for key, kind in rows.items() if code.search(kind)]


def test_schemas_are_written_for_every_kind_of_file(tmp_path: Path) -> None:
    paths = schema.write_schemas(tmp_path)
    assert {p.name.split(".")[0] for p in paths} == set(schema.KINDS)
    for path in paths:
        assert json.loads(path.read_text())["type"] == "object"


def test_every_configuration_file_of_the_project_is_valid() -> None:
    assert schema.check_all().endswith("are valid")


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_only_commands_that_exist() -> None:
    from sis.cli import build_parser

    known = set(re.findall(r"^    ([\w-]+)\b", build_parser().format_help(), re.MULTILINE))
    named = set(re.findall(r"`sis ([\w-]+)", (ROOT / "README.md").read_text()))
    assert named <= known
