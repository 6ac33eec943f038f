# SPDX-License-Identifier: Apache-2.0
"""Configuration files hold no surprises: every doubtful line is refused with its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from sis.config.base import StrictModel
from sis.config.strict_yaml import load_model, load_yaml
from sis.errors import SisError


class Inner(StrictModel):
    width: int = Field(default=1, ge=1, description="")
    rate: float = Field(default=0.1, gt=0, description="")
    flip: bool = Field(default=False, description="")


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    items: list[int] = []


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SisError) as caught:
        load_model(write(folder, text), Outer)
    return str(caught.value)


def test_a_good_file_loads(tmp_path: Path) -> None:
    text = 'name: "no"\ninner: {width: 3, rate: 1.0e-4, flip: true}\nmany:\n  a: {width: 2}\nitems: [1, -2]\n'
    found = load_model(write(tmp_path, text), Outer)
    assert found.name == "no" and found.inner == Inner(width=3, rate=1e-4, flip=True)
    assert found.many["a"].width == 2 and found.items == [1, -2]


def test_aliases_repeat_a_value(tmp_path: Path) -> None:
    found = load_model(write(tmp_path, "name: x\nmany:\n  a: &it {width: 5}\n  b: *it\n"), Outer)
    assert found.many["a"] == found.many["b"] == Inner(width=5)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("name: x\nname: y\n", 2, "duplicate key 'name'"),
        ("name: x\ninner:\n  width: 1\n  width: 2\n", 4, "duplicate key 'width'"),
        ("name: x\ninner:\n  widht: 1\n", 3, "did you mean 'width'?"),
        ("name: x\nmany:\n  a:\n    ratte: 1.0\n", 4, "did you mean 'rate'?"),
        ("name: x\ninner: {flip: yes}\n", 2, "ambiguous value 'yes'"),
        ("name: x\ninner: {flip: off}\n", 2, "ambiguous value 'off'"),
        ("name: x\ninner: {flip: True}\n", 2, "ambiguous value 'True'"),
        ("name: no\n", 1, "ambiguous value 'no'"),
        ("name: x\ninner: {width: 010}\n", 2, "ambiguous value '010'"),
        ("name: x\ninner: {width: 0x10}\n", 2, "ambiguous value '0x10'"),
        ("name: x\ninner: {width: 1:30}\n", 2, "ambiguous value '1:30'"),
        ("name: x\ninner:\n  rate: 1e-4\n", 3, "is text in YAML, not a number"),
        ("name: x\ninner: {width: 1.0}\n", 2, "found 1.0 (float)"),
        ("name: x\ninner: {width: '3'}\n", 2, "found '3' (str)"),
        ("name: x\ninner: {width: 0}\n", 2, "greater than or equal to 1"),
        ("name: x\nitems: [1, two]\n", 2, "items.1"),
        ("name: x\ninner: {<<: {width: 2}}\n", 2, "no merges"),
        ("name: x\n? [a]\n: 1\n", 2, "plain text"),
        ("name: 2020-01-01\n", 1, "unsupported type timestamp"),
        ("name: !!python/object:os.system x\n", 1, "unsupported type"),
        ("name: x\ninner: [\n", 3, "not valid YAML"),
        ("name: x\n\tinner: 1\n", 2, "not valid YAML"),
    ],
)
def test_every_doubtful_line_is_refused_with_its_number(tmp_path: Path, text: str, line: int, reason: str) -> None:
    message = refusal(tmp_path, text)
    assert reason in message
    assert f"file.yaml:{line}]" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: str) -> None:
    assert "inner.rate" in refusal(tmp_path, f"name: x\ninner: {{rate: {value}}}\n")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "missing key 'name'" in refusal(tmp_path, "items: []\n")
    assert "missing key 'name'" in refusal(tmp_path, "# nothing\n")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "mapping" in refusal(tmp_path, "- a\n- b\n")


def test_a_value_that_contains_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SisError):
        load_yaml(write(tmp_path, "a: &a [*a]\n"))


def test_several_documents_are_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal(tmp_path, "name: x\n---\nname: y\n")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SisError, match="no such configuration file"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(SisError, match="cannot read"):
        load_yaml(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(SisError, match="cannot read"):
        load_yaml(path)


def test_overrides_replace_top_level_keys_and_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nitems: [1]\n")
    assert load_model(path, Outer, {"items": [2]}).items == [2]
    with pytest.raises(SisError, match=r"unknown key 'nmae'.*did you mean 'name'"):
        load_model(path, Outer, {"nmae": "y"})


def test_line_numbers_of_keys_are_returned(tmp_path: Path) -> None:
    data, lines = load_yaml(write(tmp_path, "name: x\nmany:\n  a:\n    width: 1\n"))
    assert data == {"name": "x", "many": {"a": {"width": 1}}}
    assert lines[("many", "a", "width")] == 4
