# SPDX-License-Identifier: Apache-2.0
"""Outputs of the authors' own code, reproduced: one test for every folder with a `case.json`."""

from __future__ import annotations

from pathlib import Path

from runners import run_case


def test_golden_case(golden_case: Path) -> None:
    run_case(golden_case)
