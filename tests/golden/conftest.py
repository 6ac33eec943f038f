# SPDX-License-Identifier: Apache-2.0
"""The option of the golden cases, `pytest tests/golden --golden-root DIR`, and one test a case below that folder."""

from __future__ import annotations

from pathlib import Path

import pytest

OWN_CASES = Path(__file__).parent / "cases"

pytest.register_assert_rewrite("runners")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-root", help="folder with golden cases, at any depth; default: tests/golden/cases")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" not in metafunc.fixturenames:
        return
    # The option is unknown where pytest was started without naming this folder.
    chosen = metafunc.config.getoption("--golden-root", default=None)
    root = metafunc.config.invocation_params.dir / chosen if chosen else OWN_CASES
    cases = sorted(path.parent for path in root.rglob("case.json"))
    ids = [case.relative_to(root).as_posix() if case != root else root.name for case in cases]
    # A folder without cases is itself the one case, and fails.
    metafunc.parametrize("golden_case", cases or [root], ids=ids or ["no-cases"])
