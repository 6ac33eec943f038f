# SPDX-License-Identifier: Apache-2.0
"""The networks of a protocol: which one a metric asks for, what its weights are called, and how it is run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.discovery import MetricFile, find_extractor, find_segmenter
from evaluators.weights import WeightStore
from sis.config.files import named
from sis.config.judges import FeaturesCard, LpipsCard, SegmenterCard, SegmenterPreset
from sis.config.protocols import NetworkRecord, ProtocolCard
from sis.data.labels import LabelSpace
from sis.data.manifest import read_manifest, stable_hash
from sis.errors import SisError

if TYPE_CHECKING:
    from evaluators.lpips_backbone import LpipsBackbone

#: What a network says of images `(b, h, w, 3)`, given the label maps' size: label ids and features, either empty.
Answer = tuple[NDArray[np.uint8], NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8], tuple[int, int]], Answer]
_NO_IDS, _NO_FEATURES = np.empty(0, np.uint8), np.empty(0, np.float32)


@dataclass(frozen=True)
class Asked:
    """A network that a metric asks for: trained here, published, an extractor of features, or LPIPS."""

    kind: Literal["trained", "published", "extractor", "lpips"]
    card: SegmenterCard | SegmenterPreset | FeaturesCard | LpipsCard

    @property
    def key(self) -> str:
        """Its name among the networks of a protocol: equal keys, equal networks and equal feeding."""
        name = self.card.net if isinstance(self.card, LpipsCard) else self.card.name
        return f"{self.kind}:{name}:{stable_hash(self.card.model_dump(mode='json'))}"

    @property
    def full_labels(self) -> bool:
        """Whether its answers are compared with label maps at full size."""
        return isinstance(self.card, SegmenterPreset) and self.card.compare == "full"


def asked_by(metric: MetricFile, card: ProtocolCard) -> Asked | None:
    """The network that a metric of a protocol asks for, None without. Raises SisError where the card names none."""
    needs = metric.module.NEEDS.partition(":")[2]
    if getattr(metric.module, "BACKBONE", "") == "lpips":
        return Asked("lpips", card.lpips)
    if needs == "extractor":
        return Asked("extractor", metric.features(card))
    if needs != "segmenter":
        return None
    found = segmenter_of(card)
    return Asked("trained" if isinstance(found, SegmenterCard) else "published", found)


@functools.cache
def _preset(name: str) -> SegmenterPreset:
    return named("segmenters", name, SegmenterPreset)


def segmenter_of(card: ProtocolCard) -> SegmenterCard | SegmenterPreset:
    """The protocol's segmenter: the recipe of one that is trained here, or a published one's preset."""
    if card.segmenter is None:
        fix = "add `segmenter:` to its card, or leave its metrics out"
        raise SisError(f"protocol {card.name!r} has no segmenter, but metrics that need one", fix=fix)
    return _preset(card.segmenter) if isinstance(card.segmenter, str) else card.segmenter


def device_called(name: str) -> str:
    """The device that `auto` stands for here, or the one called so. Raises SisError for one that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SisError(f"no device {name!r} here", fix="choose auto, cpu, or a GPU that torch sees") from error
    return name


@dataclass(frozen=True)
class Networks:
    """Where the judging networks come from, and where they run.

    segmenter: weights of the protocol's own segmenter, if it is trained here; device: as torch calls it.
    """

    segmenter: Path | None
    weights: WeightStore
    device: str = "cpu"

    def record(self, asked: Asked, labels: LabelSpace) -> tuple[NetworkRecord, str]:
        """The name and weights of a network, and what its stand-in is called ("" for real weights)."""
        card = asked.card
        if isinstance(card, SegmenterCard):
            return self._trained(card, labels), ""
        if isinstance(card, LpipsCard):
            from evaluators.lpips_backbone import lpips_record

            return lpips_record(card.net, self.weights)
        from evaluators.network import STAND_IN

        named_as = card.network if isinstance(card, SegmenterPreset) else card.name
        version = (find_segmenter if isinstance(card, SegmenterPreset) else find_extractor)(named_as).VERSION
        found = [self.weights.look(name) for name in card.weights]
        files = [file for file in found if file is not None]
        if not files or len(files) < len(found):
            return NetworkRecord(name=f"{named_as} v{version}, {STAND_IN}", sha256="from parameter names"), STAND_IN
        verified = all(file.verified for file in files)  # a pin is the user's own and must not change an id
        names, sums = ", ".join(file.card.file for file in files), [file.sha256 for file in files]
        sha256 = sums[0] if len(sums) == 1 else stable_hash(sums, 64)
        return NetworkRecord(name=f"{named_as} v{version}, {names}", sha256=sha256, verified=verified), ""

    def _trained(self, card: SegmenterCard, labels: LabelSpace) -> NetworkRecord:
        """Check that the judge was trained by this card for these labels, and name its weights."""
        if self.segmenter is None:
            raise SisError(f"the segmenter {card.name} is trained here", fix="give --segmenter, see train-segmenter")
        manifest = read_manifest(self.segmenter, "segmenter")
        if manifest.meta["card"] != card.model_dump(mode="json"):
            raise SisError(
                "this segmenter was trained by another recipe than the protocol has",
                where=self.segmenter,
                fix="run train-segmenter with this protocol",
            )
        if (manifest.meta["labels"], manifest.meta["ids"]) != (labels.name, labels.evaluated_ids):
            raise SisError("this segmenter was trained on another label table", where=self.segmenter)
        return NetworkRecord(name=card.name, sha256=next(iter(manifest.files.values())))

    def lpips(self, card: LpipsCard) -> LpipsBackbone:
        """LPIPS with the backbone that the card names."""
        from evaluators.lpips_backbone import lpips_backbone

        return lpips_backbone(card.net, self.weights, self.device)

    def load(self, asked: Asked, labels: LabelSpace) -> Run:
        """A function that shows images to a segmenter or an extractor, in full 32-bit arithmetic on GPUs too."""
        from evaluators.float32 import whole_float32

        run = self._run(asked, labels)

        def exact(images: NDArray[np.uint8], size: tuple[int, int]) -> Answer:
            with whole_float32():
                return run(images, size)

        return exact

    def _run(self, asked: Asked, labels: LabelSpace) -> Run:
        card = asked.card
        if isinstance(card, SegmenterCard):
            trained = find_segmenter(card.name).load(self.segmenter)
            return lambda images, _: trained.predict(images)
        if isinstance(card, SegmenterPreset):
            return self._published(card, labels)
        if isinstance(card, FeaturesCard):
            extractor = find_extractor(card.name).load(card.options, self._source(card.weights))
            return lambda images, _: (_NO_IDS, extractor.features(images))
        raise SisError(f"{asked.key} compares images, it does not answer for one")

    def _published(self, card: SegmenterPreset, labels: LabelSpace) -> Run:
        segmenter = find_segmenter(card.network).load(card.options, self._source(card.weights))
        ids = np.array(labels.evaluated_ids if card.ids is None else card.ids, np.uint8)
        if len(ids) != segmenter.classes:
            raise SisError(
                f"segmenter preset {card.name!r} answers with {segmenter.classes} classes, "
                f"label table {labels.name!r} has {len(ids)} that count",
                fix="give `ids:` in the preset, one label id for each class",
            )
        from evaluators.feeding import fed

        def run(images: NDArray[np.uint8], size: tuple[int, int]) -> Answer:
            return ids[segmenter.predict(fed(images, card.feed, size), size)], _NO_FEATURES

        return run

    def _source(self, names: list[str]) -> Any:
        from evaluators.network import Source

        found = [self.weights.find(name) for name in names]
        whole = bool(found) and None not in found
        return Source([file[0] for file in found if file is not None] if whole else (), self.device)
