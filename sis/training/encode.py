# SPDX-License-Identifier: Apache-2.0
"""Encodes the training split by an autoencoder, shard by shard; an interrupted run keeps its finished shards."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sis.data.latents import MEAN, MIRRORED, STD
from sis.data.manifest import Manifest, read_manifest, stable_hash, write_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord, device_name
from sis.data.tensors import save_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import NO_FILES, ready
from sis.plan import RunSpec
from sis.progress import Progress

#: Pictures that are encoded together, and so many of them a file.
_BATCH, _SHARD = 8, 512


def encode_split(spec: RunSpec, pairs_folder: Path, model: Path, mirrored: bool, out: Path, device: str) -> Manifest:
    """Write the latents of a split under the autoencoder of `spec` as the folder `out`.

    Args:
        spec: the autoencoder.
        mirrored: encode every mirrored picture too.

    Raises SisError for a split whose pictures are cut anew at each use, and for a model that encodes nothing.
    """
    run, pairs = RunRecord.start(device=device), PairSet.open(pairs_folder)
    if pairs.augmented:
        what = f"{pairs.dataset}/{pairs.split} is cut anew at each use, so it has no latents to keep"
        raise SisError(what, where=pairs_folder, fix="use a dataset card whose policy fixes the pictures")
    network = ready(spec, model, NO_FILES, device).network
    if not hasattr(network, "moments"):
        raise SisError(f"{spec.method.name} is no autoencoder", where=model)
    place = pairs_folder if pairs_folder.is_dir() else pairs_folder.parent
    data = TrainingData.open(pairs, place / "decoded")
    facts = [spec.model_id, read_manifest(model, "model").digest, pairs.manifest.digest, mirrored, device_name(device)]
    key, shards = stable_hash(facts, 16), list[Path]()
    with Progress(f"encode {pairs.dataset}/{pairs.split}", len(data), "images") as progress:
        for number, start in enumerate(range(0, len(data), _SHARD)):
            positions = range(start, min(start + _SHARD, len(data)))
            shards.append(out / f"shard-{number:04d}.safetensors")
            shard_key = f"{key}:{number}"
            if not _is_whole(shards[-1], shard_key):
                tensors = _encode(data, positions, network, mirrored, device)
                save_tensors(tensors, shards[-1], "latents", {"key": shard_key}, run.finish())
            progress.update(len(positions))
    with safe_open(shards[0], "pt") as first:
        shape = list(first.get_slice(MEAN).get_shape()[1:])
    meta = {
        "dataset": pairs.dataset, "split": pairs.split, "autoencoder": spec.model_id, "ids": data.ids, "shape": shape,
        "mirrored": mirrored, "starts": list(range(0, len(data), _SHARD)), "device": device_name(device),
    }  # fmt: skip
    return write_manifest(out, "latents", shards, meta, run)


@torch.inference_mode()
def _encode(data: TrainingData, positions: range, network: Any, mirrored: bool, device: str) -> dict[str, Tensor]:
    """The tensors of one shard: mean and deviation `(n, c, h, w)` of the pictures, and of the mirrored ones."""
    parts: dict[str, list[Tensor]] = {}
    requests = ((positions[i : i + _BATCH], None) for i in range(0, len(positions), _BATCH))
    with closing(data.read_ahead(requests)) as reading:
        for raw in reading:
            images = torch.from_numpy(raw.images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            # A last batch of another size could round differently.
            padded = torch.cat([images, images[-1:].expand(_BATCH - len(images), -1, -1, -1)])
            for prefix, shown in (("", padded), (MIRRORED, padded.flip(-1)))[: 1 + mirrored]:
                mean, std = network.moments(shown)
                parts.setdefault(prefix + MEAN, []).append(mean[: len(images)].float().cpu())
                parts.setdefault(prefix + STD, []).append(std[: len(images)].float().cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _is_whole(path: Path, key: str) -> bool:
    """Whether an interrupted run of this very encoding left this shard, every byte as it was."""
    try:
        return read_manifest(path, "latents").meta.get("key") == key
    except SisError:
        return False
