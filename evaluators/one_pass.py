# SPDX-License-Identifier: Apache-2.0
"""One pass over a window: each image is decoded once, seen by every network that needs it, reduced to partials.

A network always sees full batches (the last one of a window is filled up), so what it says of an image does not depend
on what was measured before, nor on how an image set was cut into files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluators.definition import Slot
from evaluators.metric import Batch, Judge
from evaluators.networks import Networks, Run
from evaluators.partial import Partial
from evaluators.sources import Source, Window
from sis.config.judges import LpipsCard
from sis.errors import SisError, first_of


@dataclass
class OnePass:
    """Networks of some slots, loaded once, and the streams that lead images to them."""

    source: Source
    slots: Sequence[Slot]
    networks: Networks
    runs: dict[str, Run] = field(init=False)
    judges: dict[str, Judge] = field(init=False)

    def __post_init__(self) -> None:
        labels = self.source.labels
        asked = {s.asked.key: s.asked for s in self.slots if s.asked}
        self.runs = {key: self.networks.load(a, labels) for key, a in asked.items() if a.kind != "lpips"}
        lpips = {key: self.networks.lpips(a.card) for key, a in asked.items() if isinstance(a.card, LpipsCard)}
        self.judges = {
            s.name: Judge(s.card, labels, lpips.get(s.asked.key) if s.asked else None, meta=self.source.meta)
            for s in self.slots
        }

    def measure(self, window: Window, slots: Sequence[Slot]) -> dict[str, Partial]:
        """Rows of the window's images for these slots, by slot name."""
        parts: dict[str, list[Partial]] = {s.name: [] for s in slots}
        streams = self._streams(slots)
        most = max(s.samples for s in slots)
        keys = [key for key in window.keys if key[1] < most]
        for (name, sample), image in zip(keys, self.source.images(keys), strict=True):
            for stream in streams:
                if sample < stream.samples and stream.add(name, sample, image):
                    self._flush(stream, parts)
        for stream in streams:
            if stream.ids:
                self._flush(stream, parts)
        return {s.name: s.metric.merge(parts[s.name]) for s in slots}

    def _streams(self, slots: Sequence[Slot]) -> list[_Stream]:
        """One stream for all slots that look at the same images through the same network."""
        streams: dict[tuple, _Stream] = {}
        for slot in slots:
            grouped = slot.metric.module.NEEDS == "groups"
            network = slot.asked.key if slot.asked and slot.asked.kind != "lpips" else ""
            alone = bool(slot.asked and slot.asked.full_labels)  # for each full label map has a size of its own
            size = slot.samples if grouped else 1 if alone else slot.card.batch_size
            key = (grouped, network, slot.samples, size)
            streams.setdefault(key, _Stream(network, slot.samples, size, not grouped, [])).slots.append(slot)
        return list(streams.values())

    def _flush(self, stream: _Stream, parts: dict[str, list[Partial]]) -> None:
        batch = self._answered(stream)
        for slot in stream.slots:
            parts[slot.name].append(_mapped(slot, batch, self.judges[slot.name]))
        stream.clear()

    def _answered(self, stream: _Stream) -> Batch:
        """The stream's images with all that its metrics asked for."""
        images, count = np.stack(stream.images), len(stream.ids)
        needs = {s.metric.module.NEEDS for s in stream.slots}
        full = any(s.asked.full_labels for s in stream.slots if s.asked)
        size, nothing = self.source.size, np.empty(0, np.uint8)
        labels, references, predicted, features = nothing, nothing, nothing, np.empty(0, np.float32)
        if "labels:segmenter" in needs:
            maps = [self.source.label(name, full) for name in stream.ids]
            labels, size = np.stack(maps), (maps[0].shape[0], maps[0].shape[1])
        if "images:reference" in needs:
            references = np.stack([_sized(self.source.style(name), self.source.size) for name in stream.ids])
        if stream.network:
            filled = np.concatenate([images, np.repeat(images[-1:], stream.size - count, 0)])
            predicted, features = self.runs[stream.network](filled, size)
        return Batch(stream.ids, stream.indices, images, labels, predicted[:count], features[:count], references)


@dataclass
class _Stream:
    """Images on their way to one network, or to metrics that need none.

    samples: it takes the first so many of each label map; size: images of a full batch; padded: whether batches may mix
    label maps (the samples of one label map are a batch of their own otherwise).
    """

    network: str
    samples: int
    size: int
    padded: bool
    slots: list[Slot]
    ids: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, name: str, sample: int, image: NDArray[np.uint8]) -> bool:
        """Take an image; whether the batch is full."""
        self.ids.append(name)
        self.indices.append(sample)
        self.images.append(image)
        return len(self.ids) == self.size

    def clear(self) -> None:
        self.ids, self.indices, self.images = [], [], []


def _sized(photograph: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if photograph.shape[:2] == size:
        return photograph
    return np.asarray(Image.fromarray(photograph).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _mapped(slot: Slot, batch: Batch, judge: Judge) -> Partial:
    """Run the metric's map and refuse rows that are not finite."""
    rows: Partial = slot.metric.module.map(batch, judge)
    for name, column in rows.columns.items():
        bad = np.flatnonzero(~np.isfinite(column.reshape(len(rows), -1)).all(axis=1))
        if len(bad):
            images = first_of(f"{rows.image_ids[i]}#{rows.sample_indices[i]}" for i in bad)
            raise SisError(f"{slot.metric.stem}: {name} of {len(bad)} images are not finite: {images}")
    return rows
