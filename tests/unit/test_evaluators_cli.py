# SPDX-License-Identifier: Apache-2.0
"""`python -m evaluators` as a program: a reader that goes away is no fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def into_nowhere(*words: str, unbuffered: str = "") -> tuple[int, bytes]:
    """Exit code and stderr of a command whose reader has gone before it writes a word."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "evaluators", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False)
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["list"], ["--help"], ["weights", "list"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_is_no_error(words: list[str], unbuffered: str) -> None:
    assert into_nowhere(*words, unbuffered=unbuffered) == (0, b"")


def test_a_refusal_without_a_reader_keeps_its_line_and_its_code() -> None:
    code, said = into_nowhere("check", "acuracy")
    assert code == 2
    assert said.startswith(b"error: ") and said.count(b"\n") == 1
