# SPDX-License-Identifier: Apache-2.0
"""Folders of partials with made-up rows, and the small pictures behind them: what `compare` and galleries read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluators.definition import Facts, slot_of
from evaluators.discovery import find_metric
from evaluators.networks import asked_by
from evaluators.partial import Partial, partial, save_partial
from evaluators.sources import content_sha256, pairs_sha256
from sis.config.files import label_space
from sis.config.protocols import BootstrapCard, NetworkRecord, ProtocolCard
from sis.config.strict_yaml import load_model
from sis.data.image_set import ImageSet, ImageSetMeta, finish_image_set, images_table, shard_name, write_shard
from sis.data.manifest import write_manifest
from sis.data.pair import Pair
from sis.data.pairs import PairSet, pair_row
from sis.data.provenance import RunRecord
from sis.data.schemas import IMAGES, PAIRS
from sis.data.tables import write_table_file

ROOT = Path(__file__).parents[1]
#: Height and width of pictures.
SIZE = (32, 40)
LABELS = label_space("scenes")
CLASSES = len(LABELS.evaluated_ids)
CARD = load_model(ROOT / "config" / "protocols" / "scenes-tiny.yaml", ProtocolCard).model_copy(
    update={
        "bootstrap": BootstrapCard(replicates=200, seed=20),
        "metrics": ["miou", "accuracy", "fd", "lpips", "ms_ssim", "throughput"],
    }
)
RUN = {"run": "one", "run_id": "one-0001", "method": "noisy", "title": "One", "kind": "python", "role": "contestant"}
SET = {**RUN, "dataset": "scenes_tiny", "split": "val", "seed": 0, "sample_seed": 0, "batch_size": 4, "threads": 1}
MADE = {**SET, "labels": "scenes", "size": list(SIZE), "device": "cpu", "sampling_seconds": 2.0}


def ids(maps: int) -> list[str]:
    return [f"map-{i:03d}" for i in range(maps)]


def rows(right: NDArray[np.float64], seed: int, pixels: int = 400) -> dict[str, Partial]:
    """Rows of every metric for a set whose label map i is answered right with probability right[i], `(m,)`.

    The better the answers, the nearer the features to those of `real_rows`, and the more the samples differ.
    """
    rng, maps = np.random.default_rng(seed), len(right)
    truth = rng.dirichlet(np.full(CLASSES, 0.6), maps)
    confusion = np.zeros((maps, CLASSES, CLASSES), np.int32)
    for i, p in enumerate(right):
        chances = np.full((CLASSES, CLASSES), (1 - p) / CLASSES) + p * np.eye(CLASSES)
        confusion[i] = rng.multinomial(pixels, (truth[i][:, None] * chances).ravel()).reshape(CLASSES, CLASSES)
    features = (rng.normal(size=(maps, 6)) + 4 * (1 - right[:, None])).astype(np.float32)
    pairs = (right[:, None] + 0.05 * rng.random((maps, 3))).astype(np.float32)
    return {
        "miou": partial(ids(maps), [0] * maps, confusion=confusion),
        "fd": partial(ids(maps), [0] * maps, features=features),
        "lpips": partial(ids(maps), [0] * maps, pairs=pairs),
        "ms_ssim": partial(ids(maps), [0] * maps, pairs=1 - pairs),
        "fid": partial(ids(maps), [0] * maps, features=features),
        **{stem: partial(ids(maps), [0] * maps, percent=100 * right) for stem in ("mask_accuracy", "style")},
        "aesthetic": partial(ids(maps), [0] * maps, percent=10 + 90 * right),
    }


def real_rows(maps: int) -> dict[str, Partial]:
    """Features of the reference."""
    features = np.random.default_rng(99).normal(size=(maps, 6)).astype(np.float32)
    return {stem: partial(ids(maps), [0] * maps, features=features) for stem in ("fd", "fid")}


def read(card: ProtocolCard) -> list[tuple[str, ProtocolCard]]:
    """The metrics whose rows a protocol needs, parts of others included, with the card that each sees."""
    return [(part, e.card) for e in card.entries() for part in find_metric(e.stem).parts or (e.stem,)]


def facts(card: ProtocolCard, maps: int, **changes: Any) -> Facts:
    """Facts of a measurement with the card's segmenter and a stand-in for LPIPS."""
    networks, stand_ins = {}, {}
    for stem, seen in read(card):
        asked = asked_by(find_metric(find_metric(stem).source), seen)
        if asked:
            networks[asked.key] = NetworkRecord(name=asked.kind, sha256="aa")
            stand_ins[asked.key] = "seeded" if asked.kind == "lpips" else ""
    given: dict[str, Any] = {
        "kind": "images",
        "digest": "d" * 64,
        "pairs_sha256": "p" * 64,
        "labels_sha256": "",
        "styles_sha256": "",
        "maps": maps,
        "samples": 2,
        "size": list(SIZE),
        "networks": networks,
        "stand_ins": stand_ins,
    }
    return Facts.model_validate(given | changes)


def write_partials(
    folder: Path, card: ProtocolCard, found: dict[str, Partial], about: Facts, meta: dict[str, Any] | None = None
) -> Path:
    """Write rows as `measure` would: a file a metric that has rows, and the manifest."""
    folder.mkdir(parents=True)
    slots: dict[str, list[str]] = {}
    for stem, seen in read(card):
        slot = slot_of(find_metric(stem), seen, about)
        if slot.metric.stem in found and slot.name not in slots:
            slots[slot.name] = [f"{slot.name}.0000.parquet"]
            save_partial(found[slot.metric.stem], folder / slots[slot.name][0], {"key": slot.key})
    told = {
        "protocol": card.name,
        "slots": slots,
        "facts": about.model_dump(mode="json"),
        "labels": LABELS.model_dump(mode="json"),
        "images": {**MADE, "rows": about.maps * about.samples, "samples_per_map": about.samples, **(meta or {})},
    }
    write_manifest(folder, "partials", [folder / n for names in slots.values() for n in names], told, RunRecord.start())
    return folder


def write_set(
    folder: Path, right: NDArray[np.float64], seed: int, title: str = "One", card: ProtocolCard = CARD, **changes: Any
) -> Path:
    """Partials of an image set that answers label map i right with probability right[i]."""
    about = facts(card, len(right), **{"digest": f"{seed:064d}", **changes})
    meta = {"title": title, "run": title.lower(), "run_id": f"{title.lower()}-{seed:04d}"}
    return write_partials(folder, card, rows(right, seed), about, meta)


def write_reference(folder: Path, maps: int = 40, card: ProtocolCard = CARD, **changes: Any) -> Path:
    """Partials of the real images."""
    about = facts(card, maps, kind="reference", samples=1, **changes)
    return write_partials(folder, card, real_rows(maps), about, {"split": card.reference.split})


def write_pairs(folder: Path, maps: int, photographs: bool = True, split: str = "val") -> PairSet:
    """Label maps with two classes each, and grey photographs."""
    shard, found = folder / shard_name(0), []
    folder.mkdir(parents=True)
    for i, name in enumerate(ids(maps)):
        label = np.full(SIZE, i % CLASSES, np.uint8)
        label[SIZE[0] // 2 :] = (i + 1) % CLASSES
        photograph = np.full((*SIZE, 3), 10 * i % 256, np.uint8)
        found.append(pair_row(Pair(name, photograph if photographs else None, label, None, ""), SIZE))
    write_table_file(pa.Table.from_pylist(found, schema=PAIRS), shard, PAIRS)
    meta = {"dataset": "scenes_tiny", "split": split, "size": list(SIZE), "labels": LABELS.model_dump(mode="json")}
    meta |= {"prepare": {}, "augmented": False, "edges": False}
    write_manifest(folder, "pairs", [shard], meta, RunRecord.start())
    return PairSet.open(folder)


def write_images(
    folder: Path, maps: int, samples: int = 2, seed: int = 0, title: str = "One", cut: Sequence[Sequence[int]] = ()
) -> ImageSet:
    """Noise pictures.

    cut: positions (in the order of ids and samples) of the pictures of each shard; none: one shard of all.
    """
    keys = [(name, k) for name in ids(maps) for k in range(samples)]
    images = np.random.default_rng(seed).integers(0, 256, (len(keys), *SIZE, 3)).astype(np.uint8)
    shards = cut or [range(len(keys))]
    for number, shard in enumerate(shards):
        table = images_table([keys[i] for i in shard], images[list(shard)], 0)
        write_shard(table, folder / shard_name(number), {})
    meta = ImageSetMeta.model_validate({**MADE, "samples_per_map": samples, "title": title})
    finish_image_set(folder, [shard_name(i) for i in range(len(shards))], meta, RunRecord.start(), {})
    return ImageSet.open(folder)


def digests(images: ImageSet, pairs: PairSet) -> dict[str, str]:
    """The facts that bind partials to pictures."""
    columns = ["image_id", "sample_index", "pixel_sha256"]
    return {"digest": content_sha256(images.manifest, IMAGES, columns), "pairs_sha256": pairs_sha256(pairs)}


def correlated(maps: int, seed: int, gap: float, spread: float = 0.2) -> Sequence[NDArray[np.float64]]:
    """Chances of two sets whose label maps are hard for both alike; the first is better by `gap`."""
    hard = np.random.default_rng(seed).uniform(-spread, spread, maps)
    return 0.6 + gap + hard, 0.6 + hard
