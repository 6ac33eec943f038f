# SPDX-License-Identifier: Apache-2.0
"""Galleries: which images are chosen, that the pictures are the right ones, and that nobody's title becomes code."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from measured_sets import CARD, LABELS, digests, facts, ids, write_images, write_pairs
from numpy.typing import NDArray
from PIL import Image

from evaluators.gallery import (
    Gallery,
    Section,
    Shown,
    Valued,
    extremes,
    open_judged,
    page,
    pair_gallery,
    picture,
    set_gallery,
    write_gallery,
)
from sis.data.image_set import ImageSet
from sis.data.images import decode_png
from sis.data.pairs import PairSet
from sis.errors import SisError

MAPS = 6
NAN = float("nan")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairSet:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "val", MAPS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return write_images(tmp_path_factory.mktemp("images") / "one", MAPS, title="<script>alert(1)</script>")


def valued(values: list[float], direction: str = "higher", sample: int = 0) -> Valued:
    return Valued([(name, sample) for name in ids(len(values))], np.array(values), "miou", "%", direction, "a mean")


def shown(html: str) -> list[NDArray]:
    """The pictures of a page."""
    found = re.findall(r"data:image/(?:png|jpeg);base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


@pytest.mark.parametrize(
    ("direction", "worst", "best", "expected"),
    [
        ("higher", 2, 1, ([3, 0], [4])),
        ("lower", 2, 1, ([4, 2], [3])),
        ("none", 1, 2, ([3], [4, 2])),
        ("higher", 0, 2, ([], [4, 2])),
        ("higher", 9, 9, ([3, 0], [4, 2])),
        ("higher", 9, 0, ([3, 0, 2, 4], [])),
    ],
)
def test_the_worst_come_first_and_undefined_values_never(
    direction: str, worst: int, best: int, expected: tuple[list[int], list[int]]
) -> None:
    assert extremes(np.array([2.0, NAN, 5.0, 1.0, 9.0]), worst, best, direction) == expected


def test_equal_values_keep_their_order() -> None:
    assert extremes(np.array([1.0, 1.0, 1.0, 0.0]), 3, 0, "higher") == ([3, 0, 1], [])


def test_a_row_shows_label_map_image_answer_and_photograph(images: ImageSet, pairs: PairSet) -> None:
    gallery = set_gallery(
        images, pairs, valued([5, 1, NAN, 3, 2, 4]), 1, 2, lambda x: np.full(x.shape[:3], 7, np.uint8)
    )
    assert [s.title for s in gallery.sections] == ["Worst 1", "Best 2"]
    assert [row.name for s in gallery.sections for row in s.rows] == [
        "map-001, sample 0",
        "map-000, sample 0",
        "map-005, sample 0",
    ]
    (worst,) = gallery.sections[0].rows
    assert worst.value == "1.000 %"
    assert list(worst.pictures) == ["label map", "generated", "segmenter's answer", "photograph"]
    pair = pairs.by_id("map-001")
    np.testing.assert_array_equal(worst.pictures["label map"], LABELS.palette()[pair.label])
    np.testing.assert_array_equal(worst.pictures["generated"], images.get("map-001", 0))
    assert (worst.pictures["segmenter's answer"] == LABELS.classes[7].colour).all()
    np.testing.assert_array_equal(worst.pictures["photograph"], pair.image)
    told = "1 worst and 2 best of 6 images by miou; 1 have no value. Value of an image: a mean. Nobody chose a picture."
    assert gallery.caption == told
    names = [LABELS.classes[i].name for i in (0, 1, 2, 5, 6, 7)]  # of maps 0, 1 and 5, and of the answers
    assert [name for name, _ in gallery.legend] == names


def test_a_value_of_a_label_map_is_shown_with_its_samples(images: ImageSet, pairs: PairSet) -> None:
    gallery = set_gallery(images, pairs, valued([1, 2, 3, 4, 5, 6], "none", -1), 1, 1)
    assert [s.title for s in gallery.sections] == ["Lowest 1", "Highest 1"]
    (row,) = gallery.sections[1].rows
    assert row.name == "map-005" and list(row.pictures) == ["label map", "sample 0", "sample 1", "photograph"]
    np.testing.assert_array_equal(row.pictures["sample 1"], images.get("map-005", 1))
    assert "of 6 label maps by" in gallery.caption


def test_without_photographs_none_is_shown(images: ImageSet, tmp_path: Path) -> None:
    bare = write_pairs(tmp_path / "bare", MAPS, photographs=False)
    (row,) = set_gallery(images, bare, valued([1, 2, 3, 4, 5, 6]), 1, 0).sections[0].rows
    assert list(row.pictures) == ["label map", "generated"]


def test_wins_and_losses_of_two_sets_follow_the_direction(images: ImageSet, pairs: PairSet, tmp_path: Path) -> None:
    other = write_images(tmp_path / "two", MAPS, seed=5, title="Two")
    ours, theirs = valued([1, 1, 1, 1, 1, 9], "lower", -1), valued([8, 2, 1, 1, NAN, 1], "lower", -1)
    gallery = pair_gallery((images, other), pairs, (ours, theirs), 1, None)
    assert [s.title for s in gallery.sections] == [
        f"Largest {w} of <script>alert(1)</script>" for w in ("wins", "losses")
    ]
    ((win,), (loss,)) = (s.rows for s in gallery.sections)
    assert (win.name, win.value) == ("map-000", "A 1.000 %, B 8.000 % (-7.000)")
    assert (loss.name, loss.value) == ("map-005", "A 9.000 %, B 1.000 % (+8.000)")
    np.testing.assert_array_equal(win.pictures["B: Two"], other.get("map-000", 0))
    assert "2 are better in A, 1 in B" in gallery.caption


def test_sets_of_one_title_are_told_apart(images: ImageSet, pairs: PairSet) -> None:
    gallery = pair_gallery((images, images), pairs, (valued([1] * 6, sample=-1), valued([2] * 6, sample=-1)), 1, None)
    assert list(gallery.sections[0].rows[0].pictures)[1:3] == ["A: one-0001", "B: one-0001"]


def test_a_page_holds_the_very_pixels_and_escapes_every_title(images: ImageSet, pairs: PairSet) -> None:
    gallery = set_gallery(images, pairs, valued([1, 2, 3, 4, 5, 6]), 1, 0)
    html = page(gallery)
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "http" not in html, "a page that stands alone asks for nothing"
    expected = list(gallery.sections[0].rows[0].pictures.values())
    for found, wanted in zip(shown(html), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_large_pictures_are_shrunk_and_colours_of_label_maps_kept() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (600, 1200, 3)).astype(np.uint8)
    label = LABELS.palette()[np.random.default_rng(0).integers(0, 10, (600, 1200))]
    gallery = Gallery("t", "c", [], [Section("s", [Shown("n", "v", {"label map": label, "photograph": photograph})])])
    drawn, small = shown(page(gallery))
    assert drawn.shape == small.shape == (256, 512, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 10


def test_a_sheet_has_a_row_an_image_and_the_ending_decides(images: ImageSet, pairs: PairSet, tmp_path: Path) -> None:
    few, more = (set_gallery(images, pairs, valued([1, 2, 3, 4, 5, 6]), n, 1) for n in (1, 3))
    assert picture(more).shape[0] - picture(few).shape[0] == 2 * (128 + 6)
    write_gallery(few, tmp_path / "few.png")
    np.testing.assert_array_equal(decode_png((tmp_path / "few.png").read_bytes()), picture(few))
    write_gallery(few, tmp_path / "few.html")
    assert (tmp_path / "few.html").read_text() == page(few)
    with pytest.raises(SisError, match=r"not \.pdf .* end it in \.html or \.png"):
        write_gallery(few, tmp_path / "few.pdf")
    with pytest.raises(SisError, match="no image has a value"):
        write_gallery(set_gallery(images, pairs, valued([NAN] * 6), 1, 1), tmp_path / "none.png")


def test_pictures_must_be_those_that_were_measured(images: ImageSet, pairs: PairSet, tmp_path: Path) -> None:
    right = facts(CARD, MAPS, **digests(images, pairs))
    found, drawn = open_judged(images.manifest.folder, pairs.manifest.folder, right)
    assert found.rows == 2 * MAPS and len(drawn) == MAPS
    other = write_images(tmp_path / "other", MAPS, seed=1)
    with pytest.raises(SisError, match="measured on other images"):
        open_judged(other.manifest.folder, pairs.manifest.folder, right)
    fewer = write_pairs(tmp_path / "fewer", MAPS - 1)
    with pytest.raises(SisError, match="measured on other label maps"):
        open_judged(images.manifest.folder, fewer.manifest.folder, right)
