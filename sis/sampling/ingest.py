# SPDX-License-Identifier: Apache-2.0
"""PNG folders in and image sets out, and back: `sis import` and `sis export`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sis.config.strict_yaml import validate
from sis.data.atomic import write_bytes_atomic
from sis.data.image_set import (
    SHARD_SIZE,
    ImageSet,
    ImageSetMeta,
    finish_image_set,
    images_table,
    shard_name,
    write_shard,
)
from sis.data.images import encode_png
from sis.data.manifest import Manifest, read_manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.errors import SisError
from sis.progress import Progress
from sis.sampling.copies import find_copies, photographs, shard_hashes
from sis.sampling.foreign import folder_maker
from sis.sampling.shards import all_keys


@dataclass(frozen=True)
class Import:
    """A folder of somebody's pictures and what they are."""

    folder: Path
    pairs: Path
    out: Path
    name: str
    run_id: str
    title: str
    method: str
    kind: Literal["images", "rule"] = "images"
    role: Literal["contestant", "control"] = "contestant"
    pattern: str = "{image_id}.png"
    samples_per_map: int = 1
    refuse_copies: bool = False


def import_folder(job: Import) -> Manifest:
    """Make an image set of a folder of PNGs.

    Raises SisError for missing, extra, damaged or wrongly sized pictures, and where `refuse_copies` asks for it for
    pictures copied from one another or from the ground truth; nothing is left behind then.
    """
    pairs = PairSet.open(job.pairs)
    run = RunRecord.start()
    keys = all_keys(pairs.ids, job.samples_per_map)
    facts = {
        "dataset": pairs.dataset, "split": pairs.split, "run": job.name, "run_id": job.run_id, "method": job.method,
        "title": job.title, "kind": job.kind, "role": job.role, "labels": pairs.labels.name, "size": list(pairs.size),
        "samples_per_map": job.samples_per_map, "seed": 0, "sample_seed": 0, "batch_size": 1, "device": "unknown",
        "threads": 1, "sampling_seconds": None,
    }  # fmt: skip
    meta = validate(ImageSetMeta, facts, f"import of {job.folder}")
    make = folder_maker(job.folder, job.pattern, keys, pairs.size, keys)
    fresh, names = not job.out.exists(), []
    try:
        with Progress(f"import {job.name}", len(keys), "images") as progress:
            for number, start in enumerate(range(0, len(keys), SHARD_SIZE)):
                part = keys[start : start + SHARD_SIZE]
                table = images_table(part, make(part), seed=0)
                names.append(shard_name(number))
                write_shard(table, job.out / names[-1], {"key": stable_hash([job.run_id, part[0], len(part)], 16)})
                progress.update(len(part))
        copies = find_copies(shard_hashes([job.out / name for name in names]), photographs(pairs), None)
        if job.refuse_copies:
            copies.refuse(job.folder)
    except SisError:
        if fresh:  # a refused folder leaves nothing behind
            shutil.rmtree(job.out, ignore_errors=True)
        raise
    return finish_image_set(job.out, names, meta, run, {"pairs_digest": pairs.manifest.digest, **copies.recorded()})


def export_pictures(artefact: Path, out: Path, labels: bool = False, instances: bool = False) -> int:
    """Write an image set, or the photographs, label maps or instance maps of pairs, as a folder of PNGs.

    Returns the number of files. Raises SisError when `out` already holds anything.
    """
    if out.exists() and any(out.iterdir()):
        raise SisError("the folder is not empty", where=out, fix="choose a new folder")
    manifest = read_manifest(artefact)
    if manifest.artefact == "pairs":
        pairs = PairSet(manifest)
        what = "label map" if labels else "instance map" if instances else "photograph"
        for pair in pairs:
            picture = {"label map": pair.label, "instance map": pair.instance, "photograph": pair.photograph}[what]
            if picture is None:
                raise SisError(f"{pairs.dataset}/{pairs.split} has no {what}s to export", where=artefact)
            write_bytes_atomic(out / f"{pair.image_id}.png", encode_png(picture))
        return len(pairs)
    if manifest.artefact != "images" or labels or instances:
        raise SisError(f"cannot export this from a {manifest.artefact} artefact", where=artefact)
    images = ImageSet(manifest)
    single = images.meta["samples_per_map"] == 1
    for batch in images.iter_batches(64):
        for image_id, sample, image in zip(batch.image_ids, batch.sample_indices, batch.images, strict=True):
            name = f"{image_id}.png" if single else f"{image_id}_{sample:03d}.png"
            write_bytes_atomic(out / name, encode_png(image))
    return images.rows
