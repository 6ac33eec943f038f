# SPDX-License-Identifier: Apache-2.0
"""Label spaces: every id has one meaning, and an id without one is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sis.config.strict_yaml import validate
from sis.data.labels import LabelSpace
from sis.errors import SisError


def data(**changes: Any) -> dict[str, Any]:
    classes = [
        {"id": 0, "name": "sky", "colour": [1, 2, 3]},
        {"id": 1, "name": "car", "colour": [4, 5, 6], "ignored": True},
        {"id": 2, "name": "road", "colour": [7, 8, 9]},
    ]
    return {"name": "three", "void": 9, "classes": classes} | changes


SPACE = LabelSpace.model_validate(data())


def test_void_is_the_last_channel() -> None:
    labels = np.array([[0, 1, 2, 9]], np.uint8)
    np.testing.assert_array_equal(SPACE.channels(labels), [[0, 1, 2, 3]])
    assert (SPACE.count, SPACE.width) == (3, 4)


def test_ignored_classes_are_inputs_that_no_score_counts() -> None:
    assert SPACE.evaluated_ids == [0, 2]
    SPACE.check(np.array([[1]], np.uint8))


@pytest.mark.parametrize("bad", [3, 8, 10, 255])
def test_an_unknown_id_is_refused_and_named(bad: int) -> None:
    with pytest.raises(SisError, match=rf"outside the table 'three': {bad} \[val-7\].*void 9"):
        SPACE.check(np.array([[0, bad, bad]], np.uint8), where="val-7")


def test_the_palette_has_every_colour_and_black_for_the_rest() -> None:
    palette = SPACE.palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[2].tolist() == [7, 8, 9]
    assert not palette[3:].any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"void": 1}, "void id 1 is also a class id"),
        ({"void": 256}, "void"),
        ({"classes": data()["classes"][::-1]}, "in order"),
        ({"classes": data()["classes"][1:]}, "0, 1, 2"),
        ({"classes": []}, "classes"),
        ({"classes": [{"id": 0, "name": "a", "colour": [0, 0]}]}, "colour"),
        ({"classes": [{"id": 0, "name": "a", "colour": [0, 0, 256]}]}, "colour"),
        ({"classes": [{"id": 0, "name": "", "colour": [0, 0, 0]}]}, "name"),
    ],
)
def test_a_table_without_a_clear_meaning_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SisError, match=reason):
        validate(LabelSpace, data(**change), "table")


def test_a_table_may_have_254_classes_beside_void_and_no_more() -> None:
    classes = [{"id": i, "name": f"c{i}", "colour": [i, 0, 0]} for i in range(255)]
    space = LabelSpace.model_validate(data(void=254, classes=classes[:254]))
    every = np.arange(255, dtype=np.uint8)[None]
    np.testing.assert_array_equal(space.channels(every), every)
    with pytest.raises(SisError, match="at most 254"):
        validate(LabelSpace, data(void=255, classes=classes), "table")
