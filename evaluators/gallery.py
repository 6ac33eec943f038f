# SPDX-License-Identifier: Apache-2.0
"""The worst and best images of a set, or the largest wins and losses of two, as a page or a sheet.

Images are chosen by their value and nothing else: nobody picks one.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluators.definition import Facts
from evaluators.sources import content_sha256, pairs_sha256
from sis.data.atomic import write_bytes_atomic, write_text_atomic
from sis.data.contact_sheet import READABLE, Picture, sheet, stacked
from sis.data.image_set import ImageSet
from sis.data.images import encode_png
from sis.data.pairs import PairSet
from sis.data.schemas import IMAGES
from sis.errors import SisError

Array = NDArray[np.float64]
#: What a segmenter says: uint8 images `(b, h, w, 3)` -> stored label ids uint8 `(b, h, w)`.
Answer = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

#: Samples of a label map that a row shows where a value belongs to all of them.
SAMPLES = 4
#: The longer side of a picture on a page, in pixels, and the quality of those that are too large to be lossless.
_LONGEST, _QUALITY = 512, 92
#: A card of the page is as wide as its pictures at this width, in pixels.
_CARD_PICTURE = 132


@dataclass(frozen=True)
class Shown:
    """One row: what it is called, its value in words, and uint8 `(h, w, 3)` pictures by their heading."""

    name: str
    value: str
    pictures: dict[str, Picture]


@dataclass(frozen=True)
class Section:
    """Rows under one heading; all have pictures of the same headings."""

    title: str
    rows: Sequence[Shown]


@dataclass(frozen=True)
class Gallery:
    """What is drawn; `legend` has the colours of the classes that occur, as CSS names them."""

    title: str
    caption: str
    legend: Sequence[tuple[str, str]]
    sections: Sequence[Section]


@dataclass(frozen=True)
class Valued:
    """Images of a set with a value each, by which they are chosen.

    keys: (image id, sample index) of each value, sample -1 where it belongs to the whole label map; values `(n,)`,
    NaN = undefined; name and unit of the metric; direction "higher", "lower" or "none" is better; meaning: what the
    value of an image is, in words.
    """

    keys: Sequence[tuple[str, int]]
    values: Array
    name: str
    unit: str
    direction: str
    meaning: str = ""

    def spelled(self, index: int) -> str:
        """A value with its unit."""
        return f"{self.values[index]:.{self.digits}f}{' ' if self.unit else ''}{self.unit}"

    @property
    def digits(self) -> int:
        """Decimals that give the largest value four digits."""
        largest = np.nanmax(np.abs(self.values), initial=0)
        return int(min(max(3 - np.floor(np.log10(largest)), 0), 6)) if largest > 0 else 1

    @property
    def rule(self) -> str:
        """How images are chosen, for captions."""
        meaning = f"Value of an image: {self.meaning}. " if self.meaning else ""
        return meaning + "Nobody chose a picture."


def open_judged(images: Path, pairs: Path, facts: Facts) -> tuple[ImageSet, PairSet]:
    """Open the pictures behind some partials. Raises SisError when those were measured on others."""
    opened, drawn = ImageSet.open(images), PairSet.open(pairs)
    if content_sha256(opened.manifest, IMAGES, ["image_id", "sample_index", "pixel_sha256"]) != facts.digest:
        raise SisError("the partials were measured on other images", where=images, fix="measure this image set")
    if pairs_sha256(drawn) != facts.pairs_sha256:
        raise SisError("the partials were measured on other label maps", where=pairs, fix="give the pairs of the split")
    return opened, drawn


def extremes(values: Array, worst: int, best: int, direction: str) -> tuple[list[int], list[int]]:
    """Positions of the worst values, worst first, and of the best, best first; none is in both.

    Undefined values are left out; equal ones keep their order. Where there are too few for both, each gets its share.
    """
    defined = np.flatnonzero(~np.isnan(values))
    sign = -1 if direction == "lower" else 1
    order = defined[np.argsort(sign * values[defined], kind="stable")].tolist()
    if worst + best > len(order):
        worst = round(len(order) * worst / (worst + best))
        best = len(order) - worst
    return order[:worst], order[::-1][:best]


def set_gallery(
    images: ImageSet, pairs: PairSet, valued: Valued, worst: int, best: int, answer: Answer | None = None
) -> Gallery:
    """The images of one set with the worst and the best values.

    Each row shows label map, generated image (of a value that belongs to a label map: some samples), what a segmenter
    answers, if one is given, and the photograph, if one was published.
    """
    low, high = extremes(valued.values, worst, best, valued.direction)
    words = ("Worst", "Best") if valued.direction != "none" else ("Lowest", "Highest")
    drawn = _Drawer(pairs, answer)
    sections = [
        Section(f"{word} {len(chosen)}", [_one(images, valued, i, drawn) for i in chosen])
        for word, chosen in zip(words, (low, high), strict=True)
        if chosen
    ]
    total, undefined = len(valued.values), int(np.isnan(valued.values).sum())
    what = "label maps" if valued.keys and valued.keys[0][1] < 0 else "images"
    caption = f"{len(low)} {words[0].lower()} and {len(high)} {words[1].lower()} of {total:,} {what} by {valued.name}"
    caption += f"; {undefined} have no value. " if undefined else ". "
    return Gallery(f"{images.meta['title']}: {valued.name}", caption + valued.rule, drawn.legend(), sections)


def pair_gallery(
    sets: tuple[ImageSet, ImageSet], pairs: PairSet, valued: tuple[Valued, Valued], shown: int, answer: Answer | None
) -> Gallery:
    """The label maps on which the first set beats the second by most, and loses by most (`shown` of each).

    The values are those of label maps, in the same order of both; rows show sample 0 of both sets.
    """
    ours, theirs = valued
    gain = (ours.values - theirs.values) * (-1 if ours.direction == "lower" else 1)
    losses, wins = extremes(gain, shown, shown, "higher")
    titles = [s.meta["title"] for s in sets]
    if titles[0] == titles[1]:
        titles = [s.meta["run_id"] for s in sets]
    drawn = _Drawer(pairs, answer)
    sections = [
        Section(f"{word} of {titles[0]}", [_both(sets, titles, ours, theirs, i, drawn) for i in chosen])
        for word, chosen in (("Largest wins", wins), ("Largest losses", losses))
        if chosen
    ]
    caption = (
        f"A = {titles[0]}, B = {titles[1]}: of {len(gain):,} label maps those on which {ours.name} differs most; "
        f"{int((gain > 0).sum())} are better in A, {int((gain < 0).sum())} in B. {ours.rule}"
    )
    return Gallery(f"{titles[0]} against {titles[1]}: {ours.name}", caption, drawn.legend(), sections)


def write_gallery(gallery: Gallery, out: Path) -> None:
    """Write a page (.html) or a sheet (.png). Raises SisError for another ending and a gallery without rows."""
    if not gallery.sections:
        raise SisError("no image has a value, so there is nothing to show", fix="choose another metric")
    if out.suffix == ".html":
        write_text_atomic(out, page(gallery))
    elif out.suffix == ".png":
        write_bytes_atomic(out, encode_png(picture(gallery)))
    else:
        raise SisError(f"a gallery is a page or a picture, not {out.suffix or 'without ending'}", where=out,
                       fix="end it in .html or .png")  # fmt: skip


def picture(gallery: Gallery) -> Picture:
    """The gallery as one sheet, uint8 `(h, w, 3)`."""
    sheets = []
    for number, section in enumerate(gallery.sections):
        title = f"{gallery.title}: {section.title}" if number == 0 else section.title
        caption = gallery.caption if number == 0 else ""
        names = [f"{row.name} {row.value}" for row in section.rows]
        rows = [list(row.pictures.values()) for row in section.rows]
        sheets.append(sheet(title, caption, list(section.rows[0].pictures), names, rows))
    return stacked(sheets)


def page(gallery: Gallery) -> str:
    """The gallery as one self-contained HTML page; whatever names and titles hold is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    columns = max(len(row.pictures) for section in gallery.sections for row in section.rows)
    return environment.get_template("gallery.html.j2").render(
        gallery=gallery, columns=columns, card_width=30 + columns * _CARD_PICTURE, uri=_uri, small=_is_small
    )


class _Drawer:
    """Pictures of label maps and answers, and the classes that were drawn."""

    def __init__(self, pairs: PairSet, answer: Answer | None) -> None:
        self.pairs, self._answer = pairs, answer
        self._palette = pairs.labels.palette()
        self._seen: set[int] = set()

    def coloured(self, label: NDArray[np.uint8]) -> Picture:
        self._seen.update(np.unique(label).tolist())
        return self._palette[label]

    def answers(self, image: Picture, head: str) -> dict[str, Picture]:
        # Decoded pictures are read-only, which torch warns of.
        return {} if self._answer is None else {head: self.coloured(self._answer(image[None].copy())[0])}

    def photograph(self, image_id: str) -> dict[str, Picture]:
        found = self.pairs.by_id(image_id).photograph
        return {} if found is None else {"photograph": found}

    def legend(self) -> list[tuple[str, str]]:
        entries = [(c.name, f"rgb({c.colour[0]} {c.colour[1]} {c.colour[2]})") for c in self.pairs.labels.classes]
        return [entry for i, entry in enumerate(entries) if i in self._seen]


def _one(images: ImageSet, valued: Valued, index: int, drawn: _Drawer) -> Shown:
    image_id, sample = valued.keys[index]
    pictures = {"label map": drawn.coloured(drawn.pairs.by_id(image_id).label)}
    if sample < 0:
        count = min(SAMPLES, int(images.meta["samples_per_map"]))
        pictures |= {f"sample {k}": images.get(image_id, k) for k in range(count)}
        name = image_id
    else:
        generated = images.get(image_id, sample)
        pictures |= {"generated": generated} | drawn.answers(generated, "segmenter's answer")
        name = image_id if images.meta["samples_per_map"] == 1 else f"{image_id}, sample {sample}"
    return Shown(name, valued.spelled(index), pictures | drawn.photograph(image_id))


def _both(
    sets: tuple[ImageSet, ImageSet], titles: list[str], ours: Valued, theirs: Valued, index: int, drawn: _Drawer
) -> Shown:
    image_id = ours.keys[index][0]
    pictures = {"label map": drawn.coloured(drawn.pairs.by_id(image_id).label)}
    for letter, title, images in zip("AB", titles, sets, strict=True):
        generated = images.get(image_id, 0)
        pictures |= {f"{letter}: {title}": generated} | drawn.answers(generated, f"segmenter's answer to {letter}")
    difference = ours.values[index] - theirs.values[index]
    value = f"A {ours.spelled(index)}, B {theirs.spelled(index)} ({difference:+.{ours.digits}f})"
    return Shown(image_id, value, pictures | drawn.photograph(image_id))


def _is_small(picture: Picture) -> bool:
    """Whether a picture is enlarged pixel by pixel on a page, and stored without loss."""
    return max(picture.shape[:2]) <= READABLE


def _uri(picture: Picture) -> str:
    """Encode a picture for a page: at most _LONGEST pixels a side; PNG if it is small or has few colours, else JPEG."""
    image = Image.fromarray(picture)
    few = image.getcolors(256) is not None
    scale = _LONGEST / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    if few or _is_small(picture):
        image.save(encoded, "PNG", optimize=True)
    else:
        # Pillow's buffer for `optimize` is too small for noise, which untrained models draw.
        image.save(encoded, "JPEG", quality=_QUALITY, subsampling=0)
    kind = "png" if few or _is_small(picture) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"
