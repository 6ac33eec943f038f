# SPDX-License-Identifier: Apache-2.0
"""What defines a number and what defines a partial, written down and hashed."""

from __future__ import annotations

from typing import Any

from evaluators.discovery import MetricFile
from sis.config.base import StrictModel
from sis.config.protocols import NetworkRecord, ProtocolCard, ProtocolRecord, ReferenceRecord
from sis.data.manifest import stable_hash


class Facts(StrictModel):
    """What a measurement looked at; kept in the manifest of the partials."""

    kind: str
    digest: str
    pairs_sha256: str
    maps: int
    samples: int
    size: list[int]
    networks: dict[str, NetworkRecord]
    stand_ins: dict[str, str]


def network_of(metric: MetricFile) -> str:
    """Which network a metric needs: "segmenter", "lpips" or "" for none."""
    needs: str = metric.module.NEEDS
    return needs.partition(":")[2] or getattr(metric.module, "BACKBONE", "")


def stand_in_of(metric: MetricFile, facts: Facts) -> str:
    """Name of the stand-in that took the real network's place, "" without."""
    return facts.stand_ins.get(network_of(metric), "")


def partial_key(metric: MetricFile, card: ProtocolCard, facts: Facts) -> str:
    """Name of a partial's content: equal keys, equal rows."""
    return stable_hash(
        {
            "metric": metric.stem,
            "version": metric.module.VERSION,
            "settings": metric.module.settings(card),
            "samples": metric.module.samples(card),
            "batch_size": card.batch_size,
            "kind": facts.kind,
            "images": facts.digest,
            "pairs": facts.pairs_sha256,
            "maps": facts.maps,
            "network": _network(metric, facts),
        },
        32,
    )


def protocol_record(
    metric: MetricFile, card: ProtocolCard, facts: Facts, reference: Facts, meta: dict[str, Any]
) -> ProtocolRecord:
    """Everything that defines the metric's number under this protocol; the images themselves stay out.

    meta: facts of the image set, for metrics that depend on them (speed depends on the device).
    """
    module = metric.module
    circumstances = {k: meta[k] for k in getattr(module, "META_SETTINGS", ())}
    compared = ReferenceRecord(split=card.reference.split, pairs_sha256=reference.pairs_sha256, count=reference.maps)
    return ProtocolRecord(
        version=card.version,
        dataset=card.dataset,
        split=card.split,
        pairs_sha256=facts.pairs_sha256,
        label_maps=facts.maps,
        samples_per_map=module.samples(card),
        size=facts.size,
        metric=module.name(card),
        metric_version=module.VERSION,
        settings={**module.settings(card), **circumstances},
        network=facts.networks.get(network_of(metric)),
        reference=compared if metric.uses_reference else None,
        bootstrap=card.bootstrap,
    )


def _network(metric: MetricFile, facts: Facts) -> dict[str, str] | None:
    record = facts.networks.get(network_of(metric))
    return record.model_dump() if record else None
