# SPDX-License-Identifier: Apache-2.0
"""Refusals are one line: what, where, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sis.errors import SisError, did_you_mean, first_of


def test_a_message_says_what_where_and_what_to_do() -> None:
    error = SisError("no such file", where=Path("a/b.yaml"), fix="write it")
    assert str(error) == "no such file [a/b.yaml] - write it"
    assert (error.what, error.fix) == ("no such file", "write it")


def test_where_and_fix_may_be_absent() -> None:
    assert str(SisError("it broke")) == "it broke"
    assert str(SisError("it broke", where=0)) == "it broke [0]"


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert "\n" not in str(SisError("first\nsecond", where="a\nb", fix="c\n  d"))


def test_the_exit_code_is_two() -> None:
    assert SisError("x").exit_code == 2


@pytest.mark.parametrize(
    ("name", "answer"),
    [("palete", "did you mean 'palette'?"), ("reel", "did you mean 'real'?"), ("qqqq", "known: palette, real, sdm")],
)
def test_the_nearest_name_is_offered_or_all_are_listed(name: str, answer: str) -> None:
    assert did_you_mean(name, ["sdm", "palette", "real"]) == answer


def test_no_candidates_are_said_to_be_none() -> None:
    assert did_you_mean("x", []) == "known: none"


def test_long_lists_are_cut_and_counted() -> None:
    assert first_of([1, 2]) == "1, 2"
    assert first_of(range(7)) == "0, 1, 2, 3, 4 and 2 more"
    assert first_of(range(5)) == "0, 1, 2, 3, 4"
