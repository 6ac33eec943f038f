# SPDX-License-Identifier: Apache-2.0
"""What defines a number and what defines a partial, written down and hashed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from evaluators.discovery import MetricFile, find_metric
from evaluators.networks import Asked, asked_by
from sis.config.base import StrictModel
from sis.config.protocols import Entry, NetworkRecord, ProtocolCard, ProtocolRecord, ReferenceRecord
from sis.data.manifest import stable_hash


class Facts(StrictModel):
    """What a measurement looked at; kept in the manifest of the partials.

    networks and stand_ins by `Asked.key`; labels_sha256 names label maps at full size, styles_sha256 the photographs
    whose style was asked for; both empty where nothing looks at them.
    """

    kind: str
    digest: str
    pairs_sha256: str
    labels_sha256: str
    styles_sha256: str
    maps: int
    samples: int
    size: list[int]
    networks: dict[str, NetworkRecord]
    stand_ins: dict[str, str]


@dataclass(frozen=True)
class Slot:
    """A partial to be measured: the metric whose `map` makes it, the card that this sees, and the network it asks for.

    key: hash of all that its rows depend on, the images themselves left out.
    """

    metric: MetricFile
    card: ProtocolCard
    asked: Asked | None
    samples: int
    key: str

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.metric.stem}-{self.key[:8]}"


def slot_of(metric: MetricFile, card: ProtocolCard, facts: Facts) -> Slot:
    """The slot of the metric that `metric` reads its rows from."""
    source = find_metric(metric.source)
    asked = asked_by(source, card)
    network = facts.networks.get(asked.key) if asked else None
    samples = 1 if facts.kind == "reference" else source.module.samples(card)
    made_of = {
        "metric": source.stem,
        "version": source.module.VERSION,
        "settings": source.map_settings(card),
        "samples": samples,
        "batch_size": card.batch_size,
        "asked": asked.key if asked else "",
        "network": network.model_dump() if network else None,
        "labels": facts.labels_sha256 if asked and asked.full_labels else "",
        "styles": facts.styles_sha256 if source.module.NEEDS == "images:reference" else "",
    }
    return Slot(source, card, asked, samples, stable_hash(made_of, 32))


def stand_in_of(metric: MetricFile, card: ProtocolCard, facts: Facts) -> str:
    """Names of the stand-ins that took real networks' places, "" without."""
    if metric.parts:
        found = {stand_in_of(find_metric(part), card, facts) for part in metric.parts}
        return "+".join(sorted(found - {""}))
    asked = asked_by(find_metric(metric.source), card)
    return facts.stand_ins.get(asked.key, "") if asked else ""


def networks_of(metric: MetricFile, card: ProtocolCard, facts: Facts) -> list[NetworkRecord]:
    """The networks behind a number, in the order of its parts; none where it needs none."""
    if metric.parts:
        return [record for part in metric.parts for record in networks_of(find_metric(part), card, facts)]
    asked = asked_by(find_metric(metric.source), card)
    return [facts.networks[asked.key]] if asked and asked.key in facts.networks else []


def uses_reference(metric: MetricFile) -> bool:
    """Whether real images enter a number, its parts included."""
    return metric.uses_reference or any(uses_reference(find_metric(part)) for part in metric.parts)


def called(entry: Entry) -> str:
    """What a metric of a protocol is called in score tables."""
    return entry.name or find_metric(entry.stem).module.name(entry.card)


def protocol_record(entry: Entry, facts: Facts, reference: Facts, meta: dict[str, Any]) -> ProtocolRecord:
    """Everything that defines a metric's number under this protocol; the images themselves stay out.

    meta: facts of the image set, for metrics that depend on them (speed depends on the device).
    """
    metric, card = find_metric(entry.stem), entry.card
    module = metric.module
    circumstances = {k: meta[k] for k in getattr(module, "META_SETTINGS", ())}
    settings: dict[str, JsonValue] = {**module.settings(card), **circumstances}
    if card.samples.drawn and getattr(metric.module, "USES_REFERENCE", False):
        settings["drawn"] = {**card.samples.drawn.model_dump(), "reference_as_drawn": card.reference.as_drawn}
    if metric.parts:
        settings["parts"] = {part: find_metric(part).module.settings(card) for part in metric.parts}
    asked = asked_by(find_metric(metric.source), card) if not metric.parts else None
    compared = ReferenceRecord(split=card.reference.split, pairs_sha256=reference.pairs_sha256, count=reference.maps)
    networks = networks_of(metric, card, facts)
    return ProtocolRecord(
        version=card.version,
        dataset=card.dataset,
        split=card.split,
        pairs_sha256=facts.pairs_sha256,
        labels_sha256=facts.labels_sha256 if asked and asked.full_labels else "",
        label_maps=facts.maps,
        samples_per_map=module.samples(card),
        size=facts.size,
        metric=called(entry),
        metric_version=module.VERSION,
        settings=settings,
        judge=asked.card.model_dump(mode="json") if asked else None,
        networks=networks,
        reference=compared if uses_reference(metric) else None,
        bootstrap=card.bootstrap,
    )
