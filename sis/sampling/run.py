# SPDX-License-Identifier: Apache-2.0
"""Runs the sampling of one run: all shards or one, then the image set's manifest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sis.config.files import project_root
from sis.data.image_set import ImageSetMeta, finish_image_set, shard_is_good
from sis.data.manifest import Manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord, device_name
from sis.data.spare import keep_spare
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.methods.build import UsedFiles, build_method, load_weights
from sis.progress import Progress
from sis.sampling.copies import find_copies, photographs, shard_hashes
from sis.sampling.foreign import command_maker, folder_maker
from sis.sampling.job import SampleJob, is_made
from sis.sampling.python_method import batch_maker
from sis.sampling.shards import Cut, Key, MakeBatch, Place, all_keys, sample_shard, shard_seconds


def sample_run(job: SampleJob) -> Manifest | None:
    """Make the image set of a run; whatever an interrupted run finished is kept.

    Returns its manifest, or None when other shards are still missing (each shard of a set may be another job).
    """
    spec, pairs = job.spec, job.open_pairs()
    run = RunRecord.start(seeds={"training": spec.seed, "sampling": spec.sample_seed}, device=job.device)
    parts = job.parts(pairs, device_name(job.device))
    chosen = job.chosen(parts)
    batch = spec.batch_size if spec.method.kind == "python" else spec.shard_size
    place, make = Place(job.out, pairs.size, run), None
    with Progress(f"sample {spec.dataset.name}/{spec.name}", sum(len(p.keys) for p in chosen), "images") as progress:
        for part in chosen:
            if make is None and not shard_is_good(job.out / part.name, part.key):
                make = _maker(job, pairs, [key for p in chosen for key in p.keys])
            sample_shard(part, place, batch, make or _never, spec.sample_seed, progress, job.notice)
    # The others' shards are read in full once all are there, and not at the end of each.
    if not all(is_made(job.out, p) for p in parts) or not all(shard_is_good(job.out / p.name, p.key) for p in parts):
        return None
    return _finish(job, pairs, parts, run)


def _maker(job: SampleJob, pairs: PairSet, asked: list[Key]) -> MakeBatch:
    spec = job.spec
    keys = all_keys(pairs.ids, spec.samples_per_map)
    card = spec.method.card
    if spec.method.kind == "images" and card is not None:
        return folder_maker(project_root() / spec.folder, card.pattern, keys, pairs.size, asked)
    if spec.method.kind == "command" and card is not None:
        return command_maker(card, pairs, job.out / "work" / "command", spec.sample_seed)
    if spec.method.kind != "python":
        raise SisError(f"method {spec.method.name} has a rule of its own", where=spec.method.path, fix="run that rule")
    _refuse_missing(job)
    prior, facts = load_tensors(job.prior, "prior") if job.prior else (None, {})
    if facts.get("latents", spec.latents_id) != spec.latents_id:
        what = f"this prior is of {facts['latents']}, the run uses {spec.latents_id}"
        raise SisError(what, where=job.prior, fix="compute the prior again")
    method = build_method(spec, job.device, pairs, prior, UsedFiles(job.uses))
    if spec.method.trains:
        if job.model is None:
            raise SisError(f"method {spec.method.name} needs a trained model", fix="give --model")
        load_weights(method, job.model)
    styles = PairSet.open(job.styles) if job.styles else None
    return batch_maker(method, pairs, spec.batch_size, spec.sample_seed, job.device, styles)


def _refuse_missing(job: SampleJob) -> None:
    for role, other in job.spec.used("sample").items():
        if role not in job.uses:
            raise SisError(f"run {job.spec.name} uses the {role} {other.name}", fix=f"give --uses {role}=MODEL")
    if "references" in job.spec.method.needs and job.styles is None:
        raise SisError(f"method {job.spec.method.name} needs reference photographs", fix="give --styles PAIRS")


def _never(keys: list[Key]) -> NDArray[np.uint8]:
    raise AssertionError("every shard was already there")


def _finish(job: SampleJob, pairs: PairSet, parts: list[Cut], run: RunRecord) -> Manifest:
    spec, seconds = job.spec, [shard_seconds(job.out / p.name) for p in parts]
    timed = spec.method.kind in ("python", "command") and all(s is not None for s in seconds)
    meta = ImageSetMeta(
        dataset=pairs.dataset,
        split=pairs.split,
        run=spec.name,
        run_id=spec.run_id,
        method=spec.method.name,
        title=spec.title,
        kind=spec.method.kind,  # pyright: ignore[reportArgumentType]
        role=spec.role,  # pyright: ignore[reportArgumentType]
        labels=pairs.labels.name,
        size=list(pairs.size),
        samples_per_map=spec.samples_per_map,
        seed=spec.seed,
        sample_seed=spec.sample_seed,
        batch_size=spec.batch_size,
        device=device_name(job.device),
        threads=spec.threads,
        sampling_seconds=sum(s or 0.0 for s in seconds) if timed else None,
    )
    extra = {"fit": spec.fit, "sample": spec.sample, "pairs_digest": pairs.manifest.digest}
    if spec.method.kind in ("images", "command"):
        copies = find_copies(shard_hashes([job.out / p.name for p in parts]), photographs(pairs), None)
        if spec.role != "control":
            copies.refuse(job.out)
        extra |= copies.recorded()
    extra["key"] = job.key
    manifest = finish_image_set(job.out, [p.name for p in parts], meta, run, extra)
    keep_spare([job.out / "manifest.json"], job.out / "work")
    return manifest
