# SPDX-License-Identifier: Apache-2.0
"""The runner of golden cases itself: nothing unknown is skipped, nothing wrong passes, nothing is left out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runners import DECLINED, RUNNERS, Near, compare, run_case

CASES, EDGES = Path(__file__).parent / "cases", Path(__file__).parent / "cases" / "sdm" / "edges"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of a small case, to be spoiled."""
    return Path(shutil.copytree(EDGES, tmp_path / "any name"))


def rewrite(case: Path, **facts: object) -> None:
    path = case / "case.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_every_kind_with_a_runner_has_a_case_here() -> None:
    kinds = {json.loads(path.read_text())["kind"] for path in CASES.rglob("case.json")}
    assert kinds == set(RUNNERS)


def test_an_unknown_kind_fails(case: Path) -> None:
    rewrite(case, kind="sdm.edge")
    with pytest.raises(pytest.fail.Exception, match=r"no runner for kind 'sdm\.edge'"):
        run_case(case)


def test_a_kind_that_is_declined_is_skipped_by_name_with_the_reason(case: Path) -> None:
    rewrite(case, kind="sdm.unet_legacy")
    with pytest.raises(pytest.skip.Exception, match=r"sdm\.unet_legacy is declined: .+"):
        run_case(case)
    assert not set(DECLINED) & set(RUNNERS)


def test_another_value_fails(case: Path) -> None:
    with np.load(case / "data.npz") as arrays:
        data = dict(arrays)
    data["edge_rand"][0, 0, 3, 4] = 1 - data["edge_rand"][0, 0, 3, 4]
    np.savez(case / "data.npz", **data)
    with pytest.raises(AssertionError, match="edge_rand"):
        run_case(case)


@pytest.mark.parametrize(
    ("value", "passes"), [(100.0, True), (100.9, True), (98.9, True), (101.2, False), (np.nan, False)]
)
def test_a_value_passes_within_its_tolerance_only(value: float, passes: bool) -> None:
    found = {"a": Near(np.array([value, 0.0]), atol=0.1, rtol=0.01)}
    expected = {"a": np.array([100.0, 0.0])}
    if passes:
        compare(found, expected)
        return
    with pytest.raises(AssertionError, match="a: 1 of 2 values differ"):
        compare(found, expected)


def test_an_output_that_the_runner_does_not_know_fails(case: Path) -> None:
    rewrite(case, outputs=["edge_rand", "blob"])
    with pytest.raises(AssertionError, match=r"did not find: \['blob'\]"):
        run_case(case)


def test_a_case_without_outputs_fails(case: Path) -> None:
    rewrite(case, outputs=[])
    with pytest.raises(AssertionError, match="lists no outputs"):
        run_case(case)


def pytest_on(root: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-rA",
        Path(__file__).parent / "test_golden.py",
    ]
    return subprocess.run([*command, "--golden-root", root], capture_output=True, text=True, cwd=cwd)


def test_the_option_finds_cases_at_any_depth_below_a_folder_named_from_here(case: Path, tmp_path: Path) -> None:
    shutil.copytree(case, tmp_path / "a" / "b" / "c")
    done = pytest_on(Path("a"), cwd=tmp_path)
    assert done.returncode == 0 and "test_golden_case[b/c]" in done.stdout and "1 passed" in done.stdout


def test_a_folder_without_cases_fails(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, cwd=tmp_path)
    assert done.returncode == 1 and "no case.json below" in done.stdout
