# SPDX-License-Identifier: Apache-2.0
"""Reduces images to partials on disk: one file for each metric and window, so that nothing finished is done twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluators.definition import Facts, Slot, slot_of
from evaluators.discovery import find_metric
from evaluators.lpips_heads import check_heads
from evaluators.metric import Progress, silent
from evaluators.networks import Networks, asked_by
from evaluators.one_pass import OnePass
from evaluators.partial import Partial, load_partial, save_partial
from evaluators.sources import (
    NO_COMPANIONS,
    Companions,
    Source,
    Window,
    full_labels_sha256,
    open_images,
    open_reference,
    pairs_sha256,
)
from sis.config.judges import LpipsCard
from sis.config.protocols import NetworkRecord, ProtocolCard
from sis.data.manifest import Manifest, read_manifest, stable_hash, write_manifest
from sis.data.provenance import RunRecord
from sis.errors import SisError

__all__ = ["Networks", "measure", "measure_images", "measure_reference"]


def measure_images(
    images: Path,
    pairs: Path,
    card: ProtocolCard,
    networks: Networks,
    out: Path,
    progress: Progress = silent,
    companions: Companions = NO_COMPANIONS,
) -> dict[str, Partial]:
    """Measure an image set over its label maps; see `measure`."""
    return measure(open_images(images, pairs, card, companions), card, networks, out, progress)


def measure_reference(
    pairs: Path, card: ProtocolCard, networks: Networks, out: Path, progress: Progress = silent
) -> dict[str, Partial]:
    """Measure the real images that distribution metrics compare with; see `measure`."""
    return measure(open_reference(pairs, card), card, networks, out, progress)


def measure(
    source: Source, card: ProtocolCard, networks: Networks, out: Path, progress: Progress = silent
) -> dict[str, Partial]:
    """Reduce images to partials in the folder `out`, one Parquet file for each slot and window, and a manifest.

    A file that lies there with the same key (metric, version, settings, images, label maps, weights) stays, and a
    network that nothing new needs is not loaded. Returns all partials by slot name.

    Raises SisError for a judge of another recipe and for features that are not finite.
    """
    run = RunRecord.start()
    facts = facts_of(source, card, networks)
    slots = wanted_slots(source, card, facts)
    missing = {w.index: [s for s in slots if not _is_good(_file(out, s, w), _key(s, w))] for w in source.windows}
    todo = [w for w in source.windows if missing[w.index]]
    if todo:
        needed = {s.name: s for found in missing.values() for s in found}
        one_pass, done, total = OnePass(source, list(needed.values()), networks), 0, sum(len(w.keys) for w in todo)
        for window in todo:
            found = one_pass.measure(window, missing[window.index])
            for slot in missing[window.index]:
                save_partial(found[slot.name], _file(out, slot, window), {"key": _key(slot, window)})
            done += len(window.keys)
            progress(done, total, {})
    _publish(source, card, facts, slots, out, run, bool(todo))
    return {s.name: s.metric.merge([load_partial(_file(out, s, w))[0] for w in source.windows]) for s in slots}


def wanted_slots(source: Source, card: ProtocolCard, facts: Facts) -> list[Slot]:
    """The partials that are to be measured: each once, for the metrics that have enough samples."""
    slots: dict[str, Slot] = {}
    for entry in card.entries():
        metric = find_metric(entry.stem)
        for part in metric.parts or (entry.stem,):
            read = find_metric(part)
            if read.module.NEEDS == "meta" or (source.kind == "reference" and not read.uses_reference):
                continue
            slot = slot_of(read, entry.card, facts)
            if slot.samples <= source.samples:
                slots[slot.name] = slot
    return list(slots.values())


def facts_of(source: Source, card: ProtocolCard, networks: Networks) -> Facts:
    """Name the networks of all the card's metrics, also of those that this set has too few samples for.

    Raises SisError for weights that are not what they should be, the heads of LPIPS included.
    """
    records: dict[str, NetworkRecord] = {}
    stand_ins: dict[str, str] = {}
    for entry in card.entries():
        for part in find_metric(entry.stem).parts or (entry.stem,):
            metric = find_metric(part)
            asked = asked_by(find_metric(metric.source), entry.card)
            if asked and asked.key not in records and (source.kind == "images" or metric.uses_reference):
                records[asked.key], stand_ins[asked.key] = networks.record(asked, source.labels)
                if isinstance(asked.card, LpipsCard):
                    check_heads(asked.card.net)
    labels, styles = source.companions.labels, source.companions.styles
    return Facts(
        kind=source.kind,
        digest=source.digest,
        pairs_sha256=source.pairs_sha256,
        labels_sha256=full_labels_sha256(labels) if labels else "",
        styles_sha256=pairs_sha256(styles) if styles else "",
        maps=source.maps,
        samples=source.samples,
        size=list(source.size),
        networks=records,
        stand_ins=stand_ins,
    )


def _file(out: Path, slot: Slot, window: Window) -> Path:
    return out / f"{slot.name}.{window.index:04d}.parquet"


def _key(slot: Slot, window: Window) -> str:
    return stable_hash([slot.key, window.digest], 32)


def _is_good(path: Path, key: str) -> bool:
    """Whether an earlier partial is still right, by the key and the content hash in the file.

    The manifest is not asked: the workflow engine deletes it, a declared output, before it repeats the job.
    """
    try:
        return load_partial(path)[1].get("key") == key
    except SisError:
        return False


def _publish(
    source: Source, card: ProtocolCard, facts: Facts, slots: Sequence[Slot], out: Path, run: RunRecord, new: bool
) -> None:
    """Write the manifest if anything changed, and remove partials that nothing asks for any more."""
    files = {s.name: [_file(out, s, w) for w in source.windows] for s in slots}
    meta = {
        "protocol": card.name,
        "slots": {name: [path.name for path in paths] for name, paths in files.items()},
        "facts": facts.model_dump(mode="json"),
        "labels": source.labels.model_dump(mode="json"),
        "images": source.meta,
    }
    earlier = _earlier(out)
    if not new and earlier is not None and earlier.meta == meta:
        return
    out.mkdir(parents=True, exist_ok=True)
    listed = sorted(path for paths in files.values() for path in paths)
    for stale in set(out.glob("*.parquet")) - set(listed):
        stale.unlink()
    write_manifest(out, "partials", listed, meta, run)


def _earlier(out: Path) -> Manifest | None:
    """The manifest of an earlier, complete measurement; a damaged one counts as absent and is made again."""
    try:
        return read_manifest(out, "partials")
    except SisError:
        return None
