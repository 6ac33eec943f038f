# SPDX-License-Identifier: Apache-2.0
"""One pass over images: each is decoded once, seen by every network that needs it, reduced to partials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.definition import Facts, network_of, partial_key
from evaluators.discovery import MetricFile, find_metric, find_segmenter
from evaluators.metric import Batch, Judge, Progress, silent
from evaluators.partial import Partial, load_partial, save_partial
from evaluators.sources import Source, open_images, open_reference
from evaluators.weights import WeightStore
from sis.config.protocols import NetworkRecord, ProtocolCard
from sis.data.manifest import Manifest, read_manifest, write_manifest
from sis.data.provenance import RunRecord
from sis.errors import SisError, first_of


@dataclass(frozen=True)
class Networks:
    """Where the judging networks come from."""

    segmenter: Path
    weights: WeightStore


def measure_images(
    images: Path,
    pairs: Path,
    card: ProtocolCard,
    networks: Networks,
    out: Path,
    progress: Progress = silent,
) -> dict[str, Partial]:
    """Measure an image set over its label maps; see `measure`."""
    return measure(open_images(images, pairs, card), card, networks, out, progress)


def measure_reference(
    pairs: Path, card: ProtocolCard, networks: Networks, out: Path, progress: Progress = silent
) -> dict[str, Partial]:
    """Measure the real images that distribution metrics compare with; see `measure`."""
    return measure(open_reference(pairs, card), card, networks, out, progress)


def measure(
    source: Source, card: ProtocolCard, networks: Networks, out: Path, progress: Progress = silent
) -> dict[str, Partial]:
    """Reduce images to partials in the folder `out`, one Parquet file a metric, and a manifest.

    A partial that lies there with the same key (metric, version, settings, images, label maps, weights)
    stays, and a network that nothing new needs is not run. Returns all partials by metric.

    Raises SisError for a judge of another recipe and for features that are not finite.
    """
    run = RunRecord.start()
    metrics = wanted_metrics(source, card)
    facts = _facts(source, card, networks)
    keys = {m.stem: partial_key(m, card, facts) for m in metrics}
    meta = {
        "protocol": card.name,
        "keys": keys,
        "facts": facts.model_dump(mode="json"),
        "labels": source.labels.model_dump(mode="json"),
        "images": source.meta,
    }
    earlier = _earlier(out)
    done = _kept(out, keys)
    missing = [m for m in metrics if m.stem not in done]
    if missing:
        done |= _one_pass(source, card, networks, missing, progress)
        for metric in missing:
            save_partial(done[metric.stem], out / f"{metric.stem}.parquet", {"key": keys[metric.stem]})
    if missing or earlier is None or earlier.meta != meta:
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(out, "partials", [out / f"{stem}.parquet" for stem in sorted(keys)], meta, run)
    return done


def wanted_metrics(source: Source, card: ProtocolCard) -> list[MetricFile]:
    """The metrics whose partials are to be measured: each source once, those that have enough samples."""
    wanted: dict[str, MetricFile] = {}
    for name in card.metrics:
        metric = find_metric(name)
        metric = metric if metric.source == metric.stem else find_metric(metric.source)
        if metric.module.NEEDS == "meta" or (source.kind == "reference" and not metric.uses_reference):
            continue
        if source.kind == "reference" or metric.module.samples(card) <= source.samples:
            wanted[metric.stem] = metric
    return list(wanted.values())


def _facts(source: Source, card: ProtocolCard, networks: Networks) -> Facts:
    """Name the networks of all the card's metrics, also of those that this set has too few samples for."""
    records: dict[str, NetworkRecord] = {}
    stand_ins: dict[str, str] = {}
    metrics = [find_metric(name) for name in card.metrics]
    needed = {network_of(m) for m in metrics if source.kind == "images" or m.uses_reference}
    if "segmenter" in needed:
        records["segmenter"] = _segmenter_record(networks.segmenter, card, source)
    if "lpips" in needed:
        from evaluators.lpips_backbone import lpips_record

        records["lpips"], stand_ins["lpips"] = lpips_record(card.lpips.net, networks.weights)
    return Facts(
        kind=source.kind,
        digest=source.digest,
        pairs_sha256=source.pairs_sha256,
        maps=source.maps,
        samples=source.samples,
        size=list(source.size),
        networks=records,
        stand_ins=stand_ins,
    )


def _segmenter_record(path: Path, card: ProtocolCard, source: Source) -> NetworkRecord:
    """Check that the judge was trained by this card for these labels, and name its weights."""
    manifest = read_manifest(path, "segmenter")
    found = manifest.meta
    if found["card"] != card.segmenter.model_dump(mode="json"):
        raise SisError(
            f"this segmenter was trained by another recipe than protocol {card.name!r} has",
            where=path,
            fix="run train-segmenter with this protocol",
        )
    if (found["labels"], found["ids"]) != (source.labels.name, source.labels.evaluated_ids):
        raise SisError("this segmenter was trained on another label table", where=path)
    return NetworkRecord(name=card.segmenter.name, sha256=next(iter(manifest.files.values())))


def _earlier(out: Path) -> Manifest | None:
    """The manifest of an earlier, complete measurement; a damaged one counts as absent and is made again."""
    try:
        return read_manifest(out, "partials")
    except SisError:
        return None


def _kept(out: Path, keys: dict[str, str]) -> dict[str, Partial]:
    """Earlier partials that are still right, by the key and the content hash in each file.

    The manifest is not asked: the workflow engine deletes it, a declared output, before it repeats the job.
    """
    kept: dict[str, Partial] = {}
    for stem, key in keys.items():
        try:
            rows, metadata = load_partial(out / f"{stem}.parquet")
        except SisError:
            continue
        if metadata.get("key") == key:
            kept[stem] = rows
    return kept


@dataclass
class _Groups:
    """Collects the samples of each label map until there are enough."""

    size: int
    waiting: dict[str, dict[int, NDArray[np.uint8]]] = field(default_factory=dict)

    def add(self, batch: Batch) -> Iterable[Batch]:
        """Take images; yield each label map's group as soon as it is complete."""
        for name, sample, image in zip(batch.image_ids, batch.sample_indices, batch.images, strict=True):
            if sample >= self.size:
                continue
            group = self.waiting.setdefault(name, {})
            group[sample] = image
            if len(group) == self.size:
                order = sorted(self.waiting.pop(name))
                yield Batch([name] * self.size, order, np.stack([group[k] for k in order]))


def _one_pass(
    source: Source, card: ProtocolCard, networks: Networks, metrics: list[MetricFile], progress: Progress
) -> dict[str, Partial]:
    segmenter, judge = _load(source, card, networks, metrics)
    grouped = [m for m in metrics if m.module.NEEDS == "groups"]
    single = [m for m in metrics if m.module.NEEDS != "groups"]
    parts: dict[str, list[Partial]] = {m.stem: [] for m in metrics}
    groups = _Groups(card.samples.diversity)
    seen = 0
    for batch in source.batches(card.batch_size):
        for samples in sorted({m.module.samples(card) for m in single}):
            asked = [m for m in single if m.module.samples(card) == samples]
            part = _segmented(_first_samples(batch, samples), segmenter, card.batch_size)
            for metric in asked if part.image_ids else []:
                parts[metric.stem].append(_mapped(metric, part, judge))
        if grouped:
            for group in groups.add(batch):
                for metric in grouped:
                    parts[metric.stem].append(_mapped(metric, group, judge))
        seen += len(batch.image_ids)
        progress(seen, source.rows, {})
    return {m.stem: m.merge(parts[m.stem]) for m in metrics}


def _load(source: Source, card: ProtocolCard, networks: Networks, metrics: list[MetricFile]) -> tuple[Any, Judge]:
    """The networks that these metrics need; None in place of the others."""
    needed = {network_of(m) for m in metrics}
    segmenter = backbone = None
    if "segmenter" in needed:
        segmenter = find_segmenter(card.segmenter.name).load(networks.segmenter)
    if "lpips" in needed:
        from evaluators.lpips_backbone import lpips_backbone

        backbone = lpips_backbone(card.lpips.net, networks.weights)
    return segmenter, Judge(card, source.labels, backbone, meta=source.meta)


def _first_samples(batch: Batch, samples: int) -> Batch:
    """The rows of the first so many samples of each label map."""
    keep = [i for i, sample in enumerate(batch.sample_indices) if sample < samples]
    if len(keep) == len(batch.image_ids):
        return batch
    ids, indices = [batch.image_ids[i] for i in keep], [batch.sample_indices[i] for i in keep]
    return Batch(ids, indices, batch.images[keep], batch.labels[keep])


def _segmented(batch: Batch, segmenter: Any, size: int) -> Batch:
    """Add what the segmenter says; it always sees `size` images, the last one repeated."""
    n = len(batch.image_ids)
    if segmenter is None or n == 0:
        return batch
    filled = np.concatenate([batch.images, np.repeat(batch.images[-1:], size - n, 0)])
    predicted, features = segmenter.predict(filled)
    return Batch(batch.image_ids, batch.sample_indices, batch.images, batch.labels, predicted[:n], features[:n])


def _mapped(metric: MetricFile, batch: Batch, judge: Judge) -> Partial:
    """Run the metric's map and refuse rows that are not finite."""
    rows: Partial = metric.module.map(batch, judge)
    for name, column in rows.columns.items():
        bad = np.flatnonzero(~np.isfinite(column.reshape(len(rows), -1)).all(axis=1))
        if len(bad):
            images = first_of(f"{rows.image_ids[i]}#{rows.sample_indices[i]}" for i in bad)
            raise SisError(f"{metric.stem}: {name} of {len(bad)} images are not finite: {images}")
    return rows
