# SPDX-License-Identifier: Apache-2.0
"""Pictures chosen by a stated rule, never by hand: the same label maps and sample index for every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sis.data.contact_sheet import draw_sheet
from sis.data.image_set import ImageSet
from sis.errors import SisError
from sis.publish.context import DatasetPublish
from sis.publish.tables import Row

Picture = NDArray[np.uint8]

#: Label maps on a contact sheet; maps and samples on the sheet of samples.
MAPS, SAMPLE_MAPS, SAMPLES = 8, 2, 6


@dataclass(frozen=True)
class Strip:
    """Pictures of one run in the order of the gallery's maps, or (samples) of one map in the order of indices."""

    run_id: str
    title: str
    role: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class SampleGroup:
    """Several samples of one label map by every run that drew more than one."""

    image_id: str
    palette: Picture
    real: Picture | None
    strips: tuple[Strip, ...]

    @property
    def given(self) -> tuple[Picture, ...]:
        """What the runs were given, and what they were to give."""
        return (self.palette,) if self.real is None else (self.palette, self.real)


@dataclass(frozen=True)
class Gallery:
    """Pictures of one dataset: label maps as colours, photographs (none if none were published), a strip a run.

    All pictures are uint8 `(h, w, 3)`; `rule` says in plain words how they were chosen.
    """

    dataset: str
    rule: str
    ids: tuple[str, ...]
    palettes: tuple[Picture, ...]
    reals: tuple[Picture, ...]
    strips: tuple[Strip, ...]
    sample_rule: str
    samples: tuple[SampleGroup, ...]


def evenly_spaced(ids: Sequence[str], count: int) -> list[str]:
    """Pick `count` of the sorted `ids` from the middles of equal intervals; all of them when there are fewer."""
    ordered = sorted(ids)
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def build_gallery(dataset: str, source: DatasetPublish, rows: Sequence[Row]) -> Gallery | None:
    """Collect the pictures of `rows` (in that order); None when no run of them has an image set.

    Raises SisError when the image sets and the split have no label map in common.
    """
    shown = [row for row in rows if row.run_id in source.image_sets]
    if not shown:
        return None
    keys = {row.run_id: _samples_by_map(source.image_sets[row.run_id]) for row in shown}
    common = set(source.pairs.ids).intersection(*keys.values())
    if not common:
        raise SisError(
            "the image sets share no label map with each other and the judged split",
            where=dataset,
            fix="sample every run on the split of the protocol",
        )
    chosen = evenly_spaced(sorted(common), MAPS)
    first = min(set.intersection(*(set(keys[r.run_id][i]) for r in shown for i in chosen)), default=None)
    if first is None:
        raise SisError("the image sets share no sample index", where=dataset, fix="sample every run again")
    pairs = [source.pairs.by_id(image_id) for image_id in chosen]
    palette = source.labels.palette()
    return Gallery(
        dataset=dataset,
        rule=(
            f"{len(chosen)} of {len(common)} label maps, evenly spaced over the sorted image ids; "
            f"sample {first} of every run. Nobody chose a picture."
        ),
        ids=tuple(chosen),
        palettes=tuple(palette[pair.label] for pair in pairs),
        reals=tuple(pair.photograph for pair in pairs if pair.photograph is not None),
        strips=tuple(
            Strip(
                row.run_id,
                row.title,
                row.role,
                tuple(source.image_sets[row.run_id].get(image_id, first) for image_id in chosen),
            )
            for row in shown
        ),
        sample_rule=(
            f"up to {SAMPLES} samples, in the order of their index, of {min(SAMPLE_MAPS, len(chosen))} of the label "
            "maps above, for every contestant that drew more than one."
        ),
        samples=_sample_groups(source, shown, keys, evenly_spaced(chosen, SAMPLE_MAPS)),
    )


def contact_sheet(gallery: Gallery) -> bytes:
    """Draw the gallery as PNG: rows = label maps, columns = label map, photograph, every run."""
    given = {"label map": gallery.palettes, **({"real": gallery.reals} if gallery.reals else {})}
    heads = [*given, *(strip.title for strip in gallery.strips)]
    columns = [*given.values(), *(strip.pictures for strip in gallery.strips)]
    return draw_sheet(
        title=gallery.dataset,
        caption=gallery.rule,
        heads=heads,
        names=gallery.ids,
        rows=list(zip(*columns, strict=True)),
    )


def samples_sheet(gallery: Gallery) -> bytes | None:
    """Draw several samples of a few label maps as PNG; None when no run drew more than one sample."""
    if not gallery.samples:
        return None
    width = max(len(strip.pictures) for group in gallery.samples for strip in group.strips)
    names, rows = [], []
    for group in gallery.samples:
        for strip in group.strips:
            names.append(f"{strip.title} / {group.image_id}")
            rows.append((*group.given, *strip.pictures))
    heads = ["label map", *(["real"] if gallery.reals else []), *(f"sample {i}" for i in range(width))]
    return draw_sheet(
        title=f"{gallery.dataset}: samples of one map",
        caption=gallery.sample_rule,
        heads=heads,
        names=names,
        rows=rows,
    )


def _samples_by_map(images: ImageSet) -> dict[str, list[int]]:
    samples: dict[str, list[int]] = {}
    every = images.keys()  # a method of image sets, not of a dict
    for image_id, index in every:
        samples.setdefault(image_id, []).append(index)
    return samples


def _sample_groups(
    source: DatasetPublish, rows: Sequence[Row], keys: dict[str, dict[str, list[int]]], ids: Sequence[str]
) -> tuple[SampleGroup, ...]:
    groups = []
    for image_id in ids:
        strips = [
            Strip(
                row.run_id,
                row.title,
                row.role,
                tuple(
                    source.image_sets[row.run_id].get(image_id, index)
                    for index in sorted(keys[row.run_id][image_id])[:SAMPLES]
                ),
            )
            for row in rows
            if row.role == "contestant" and len(keys[row.run_id][image_id]) > 1
        ]
        pair = source.pairs.by_id(image_id)
        if strips:
            palette = source.labels.palette()[pair.label]
            groups.append(SampleGroup(image_id, palette, pair.photograph, tuple(strips)))
    return tuple(groups)
