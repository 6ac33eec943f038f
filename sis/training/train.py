# SPDX-License-Identifier: Apache-2.0
"""Stages 2 and 3 for one method: train its network, or compute its prior."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from sis.data.atomic import remove_leftovers
from sis.data.manifest import Manifest, read_manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import write_table
from sis.data.tensors import save_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import build_method
from sis.plan import RunSpec
from sis.training.loop import TrainingRun
from sis.training.state import StateFolder


def train_model(spec: RunSpec, pairs_folder: Path, out: Path, device: str) -> Manifest:
    """Train the model of a run; `out` is its final safetensors, states live in `work/` beside it until then.

    A model that is there already, whole and of the very same training, is kept.
    """
    if not spec.method.trains:
        raise SisError(f"method {spec.method.name} does not train")
    run = RunRecord.start(seeds={"training": spec.seed}, device=device)
    pairs = _training_pairs(spec, pairs_folder)
    key = stable_hash([spec.model_id, pairs.manifest.digest, device], 16)
    finished = _finished(out, key)
    if finished is not None:
        return finished
    method = build_method(spec, device, None, None)
    training = TrainingRun(out.parent / "work", key, spec.seed, device, f"{spec.dataset.name}/{spec.model_id}")
    method.fit(_data(pairs, pairs_folder), training)
    log = pa.Table.from_pylist(training.log, schema=TRAINING_LOG)
    write_table(log, out.with_name("training.parquet"), TRAINING_LOG, {"model_id": spec.model_id})
    network = method.network
    facts = {
        "method": spec.method.name,
        "model_id": spec.model_id,
        "key": key,
        "dataset": spec.dataset.name,
        "fit": method.fit_params.model_dump(),
        "label_width": pairs.labels.width,
        "parameters": sum(p.numel() for p in network.parameters()) if network is not None else 0,
        "final_loss": training.log[-1]["loss"] if training.log else None,
        "training_seconds": training.log[-1]["seconds"] if training.log else 0.0,
    }
    save_tensors(training.average, out, "model", facts, run)
    StateFolder(training.folder, key).clear()
    remove_leftovers(out.parent)
    return read_manifest(out, "model")


def _finished(out: Path, key: str) -> Manifest | None:
    """The whole model of this very training, if it is there already."""
    try:
        manifest = read_manifest(out, "model")
    except SisError:
        return None
    return manifest if manifest.meta.get("key") == key else None


def compute_prior(spec: RunSpec, pairs_folder: Path, out: Path, device: str) -> Manifest:
    """Compute the prior of a run from the training pairs."""
    if not spec.method.has_prior:
        raise SisError(f"method {spec.method.name} has no prior")
    run = RunRecord.start(device=device)
    pairs = _training_pairs(spec, pairs_folder)
    method = build_method(spec, device, None, None)
    tensors = method.prior(_data(pairs, pairs_folder))
    facts = {
        "method": spec.method.name,
        "prior_id": spec.prior_id,
        "dataset": spec.dataset.name,
        "count": len(pairs),
    }
    save_tensors(tensors, out, "prior", facts, run)
    return read_manifest(out, "prior")


def _data(pairs: PairSet, folder: Path) -> TrainingData:
    place = folder if folder.is_dir() else folder.parent
    return TrainingData.open(pairs, place / "decoded")


def _training_pairs(spec: RunSpec, folder: Path) -> PairSet:
    pairs = PairSet.open(folder)
    if (pairs.dataset, pairs.split) != (spec.dataset.name, "train"):
        raise SisError(f"training needs {spec.dataset.name}/train, these are pairs of {pairs.dataset}/{pairs.split}")
    return pairs
