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


def classes(**changes: Any) -> list[dict[str, Any]]:
    """The three classes; a change names a field and its values for sky, car and road (None: not given)."""
    given: list[dict[str, Any]] = [dict(c) for c in data()["classes"]]
    for name, values in changes.items():
        for entry, value in zip(given, values, strict=True):
            entry |= {} if value is None else {name: value}
    return given


def test_evaluators_may_order_the_classes_in_their_own_way() -> None:
    space = LabelSpace.model_validate(data(classes=classes(evaluator=[1, None, 0])))
    assert space.evaluated_ids == [2, 0]


def test_values_of_files_become_ids_and_back() -> None:
    space = LabelSpace.model_validate(data(file_offset=10, file_void=[0, 200]))
    values = np.array([[10, 11, 12, 0, 200]], np.uint16)
    for stored in (values, values.astype(np.uint8)):
        ids = space.from_file(stored)
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, [[0, 1, 2, 9, 9]])
    np.testing.assert_array_equal(space.to_file(ids), [[10, 11, 12, 0, 0]])


def test_void_has_its_own_id_in_files_unless_the_table_says_otherwise() -> None:
    np.testing.assert_array_equal(SPACE.from_file(np.array([[2, 9]], np.uint8)), [[2, 9]])
    never = LabelSpace.model_validate(data(file_void=[]))
    assert never.width == 4
    with pytest.raises(SisError, match=r"outside the table 'three': 9 - 0\.\.2 are allowed"):
        never.from_file(np.array([[2, 9]], np.uint8))
    np.testing.assert_array_equal(never.to_file(np.array([[9]], np.uint8)), [[9]])


def test_unknown_values_of_a_file_are_named_with_it_and_do_not_wrap() -> None:
    found = np.array([[0, 3, 258, 65535, 3]], np.uint16)
    with pytest.raises(SisError, match=r"outside the table 'three': 3, 258, 65535 \[x\.png\].*0\.\.2, 9 \(void\) are"):
        SPACE.from_file(found, where="x.png")


def test_a_mirrored_picture_exchanges_paired_classes() -> None:
    space = LabelSpace.model_validate(data(classes=classes(mirror=[2, None, 0])))
    np.testing.assert_array_equal(space.mirror_channels(), [2, 1, 0, 3])
    np.testing.assert_array_equal(SPACE.mirror_channels(), [0, 1, 2, 3])


def test_a_table_without_void_has_a_channel_for_each_class_only() -> None:
    space = LabelSpace.model_validate(data(void=None))
    assert (space.count, space.width, space.void_values) == (3, 3, [])
    np.testing.assert_array_equal(space.to_file(np.array([[2]], np.uint8)), [[2]])
    with pytest.raises(SisError, match=r"outside the table 'three': 255.*ids 0\.\.2 are allowed"):
        space.check(np.array([[255]], np.uint8))


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
        ({"void": None, "file_void": [0]}, "void is null"),
        ({"file_void": [2]}, "also values of classes"),
        ({"file_offset": 7}, "also values of classes"),
        ({"file_offset": 254}, "puts classes above 255"),
        ({"classes": classes(evaluator=[0, None, None])}, "evaluator ids must be"),
        ({"classes": classes(evaluator=[0, None, 2])}, "evaluator ids must be"),
        ({"classes": classes(evaluator=[0, 1, 2])}, "evaluator ids must be"),
        ({"classes": classes(mirror=[2, None, None])}, "mirror ids must"),
        ({"classes": classes(mirror=[3, None, None])}, "mirror ids must"),
        ({"classes": classes(mirror=[1, 2, 0])}, "mirror ids must"),
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
