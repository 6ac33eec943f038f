# SPDX-License-Identifier: Apache-2.0
"""Stage 2 for one method: train its network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.atomic import only_writer, remove_leftovers
from sis.data.manifest import Manifest, manifest_path, read_manifest, stable_hash
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord, device_name
from sis.data.spare import keep_spare, restore_spare
from sis.data.tensors import save_tensors
from sis.data.training_data import TrainingData
from sis.errors import SisError
from sis.methods.build import NO_FILES, UsedFiles, build_method
from sis.methods.contract import Method
from sis.notice import NEVER, Notice
from sis.plan import RunSpec
from sis.run_spec import kept_path
from sis.training import log as training_log
from sis.training.loop import TrainingRun
from sis.training.preview import preview_sampler
from sis.training.ranks import ALONE, Ranks
from sis.training.source import code_digest
from sis.training.state import StateFolder


def train_model(
    spec: RunSpec,
    pairs_folder: Path,
    out: Path,
    device: str,
    ranks: Ranks = ALONE,
    resume_other: bool = False,
    used: UsedFiles = NO_FILES,
    notice: Notice = NEVER,
) -> Manifest | None:
    """Train the model of a run; `out` is its final safetensors, states live in `work/` beside it until then.

    A model that is there already, whole and of the very same training, is kept.

    Args:
        ranks: the processes that train it together, each of which calls this; the first one writes.
        resume_other: go on from a state of other code, another device or number of processes.
        used: the models that the method works with, and the encoded split.
        notice: looked at between steps; a training that is told to stop writes a state and raises Stopped.

    Returns:
        Its manifest; None in all processes but the first.
    """
    run = RunRecord.start(seeds={"training": spec.seed}, device=device)
    with ranks.together():
        if not spec.method.trains:
            raise SisError(f"method {spec.method.name} does not train")
        pairs = training_pairs(spec, pairs_folder)
        refuse_missing(spec, used, spec.used("fit"))
        key, made_of = _identity(spec, pairs, device, ranks, used)
    ranks.agree({name: made_of[name] for name in ("model", "data", "code")})
    if ranks.first:
        restore_spare(model_files(out), out.parent / "work", manifest_path(out), key)
    finished = _finished(out, key) if ranks.first else None
    if ranks.share(finished is not None):
        if ranks.first:
            keep_spare(model_files(out), out.parent / "work")
            _tidy(out)
        return finished
    with ranks.together():
        method = build_method(spec, device, None, None, used)
        sampler, data = preview_sampler(spec, method, pairs, device), training_data(pairs, pairs_folder)
    config = _config(spec, method, pairs)
    training = TrainingRun(
        out.parent / "work", stable_hash(made_of, 16), spec.seed, device, f"{spec.dataset.name}/{spec.model_id}",
        made_of, config, resume_other, ranks, sampler, _keeper(config, key, out, run), out.parent / "previews",
        notice,
    )  # fmt: skip
    with ExitStack() as stack:
        with ranks.together():
            if ranks.first:
                stack.enter_context(only_writer(out.parent / "work" / ".training.lock", "this model"))
        method.fit(data, training)
        return _publish(method, training, config | {"key": key}, out, run) if ranks.first else None


def refuse_missing(spec: RunSpec, used: UsedFiles, roles: dict[str, RunSpec]) -> None:
    """Raise SisError unless the models of these roles, and the encoded split of a method that reads one, are given."""
    for role, other in roles.items():
        if role not in used.models:
            raise SisError(f"{spec.name} uses the {role} {other.name}", fix=f"give --uses {role}=MODEL")
    if spec.latents_id and used.latents is None:
        raise SisError(f"{spec.method.name} reads encoded pictures", fix="give --latents, what `sis encode` made")


def _digests(used: UsedFiles) -> list[str]:
    """What is inside the files of other stages."""
    files = [path for _, path in sorted(used.models.items())] + ([used.latents] if used.latents else [])
    return [read_manifest(path, verify=False).digest for path in files]


def _identity(spec: RunSpec, pairs: PairSet, device: str, ranks: Ranks, used: UsedFiles) -> tuple[str, dict[str, str]]:
    """The key of the finished model, and what a resumable state is made of."""
    several = [ranks.count] if ranks.count > 1 else []
    others = _digests(used)
    kind = torch.device(device).type
    # Several processes have a device each.
    key = stable_hash([spec.model_id, pairs.manifest.digest, kind if several else device, *several, *others], 16)
    made_of = {
        "model": spec.model_id,
        "data": stable_hash(pairs.manifest.files, 16),
        "code": code_digest(spec.method.path),
        "device": " ".join([kind, *device_name(device).split()[1:]]),
        "processes": str(ranks.count),
    }
    return key, made_of | ({"uses": stable_hash(others, 16)} if others else {})


def _config(spec: RunSpec, method: Method, pairs: PairSet) -> dict:
    """What a file of weights says of itself: equal for equal trainings."""
    return {
        "method": spec.method.name,
        "version": spec.method.version,
        "model_id": spec.model_id,
        "dataset": spec.dataset.name,
        "size": list(spec.dataset.size),
        "labels": pairs.labels.name,
        "label_width": pairs.labels.width,
        "edges": spec.dataset.edges,
        "seed": spec.seed,
        "fit": method.fit_params.model_dump(),
    }


def _publish(method: Method, training: TrainingRun, config: dict, out: Path, run: RunRecord) -> Manifest:
    """Write log, raw weights if they are wanted, and the model; then the states are not needed any more."""
    log, network, recipe = training.log, method.network, method.fit_params
    training_log.publish(log, out.with_name("training.parquet"), {"model_id": config["model_id"]}, run)
    key = config.pop("key")
    facts = config | {
        "key": key,
        "parameters": sum(p.numel() for p in network.parameters()) if network is not None else 0,
        "steps": recipe.total if isinstance(recipe, Recipe) else None,
        "final_loss": log[-1]["loss"] if log else None,
        "training_seconds": log[-1]["seconds"] if log else 0.0,
    }
    if training.ranks.count > 1:
        facts["processes"] = training.ranks.count
    if training.resumed:
        facts["resumed"] = training.resumed

    def save(tensors: dict[str, Tensor], path: Path, weights: str) -> None:
        inside = config | {"weights": weights, "steps": facts["steps"]}
        save_tensors(tensors, path, "model", facts | {"weights": weights}, run, inside)

    if isinstance(recipe, Recipe) and recipe.keep_raw and network is not None:
        save(network.state_dict(), out.with_name(f"{out.stem}-raw{out.suffix}"), "raw")
    save(training.average, out, "averaged")
    keep_spare(model_files(out), out.parent / "work")
    _tidy(out)
    return read_manifest(out, "model")


def model_files(out: Path) -> list[Path]:
    """The files of a finished model that its rule declares or that come with it, the declared one last."""
    return [manifest_path(out), out]


def _keeper(config: dict, key: str, out: Path, run: RunRecord) -> Callable[[int, dict[str, Tensor]], None]:
    """Writes averaged weights on the way as models of their own."""

    def keep(step: int, average: dict[str, Tensor]) -> None:
        facts = config | {"weights": "averaged", "steps": step}
        save_tensors(average, kept_path(out, step), "model", facts | {"key": f"{key}:{step}"}, run.finish(), facts)

    return keep


def _tidy(out: Path) -> None:
    """Remove what only an unfinished training needs, and what killed ones left."""
    StateFolder(out.parent / "work", "").clear()
    remove_leftovers(out.parent)


def _finished(out: Path, key: str) -> Manifest | None:
    """The whole model of this very training, if it is there already."""
    try:
        manifest = read_manifest(out, "model")
    except SisError:
        return None
    return manifest if manifest.meta.get("key") == key else None


def training_data(pairs: PairSet, folder: Path) -> TrainingData:
    """The training data of pairs, with their cache beside them."""
    place = folder if folder.is_dir() else folder.parent
    return TrainingData.open(pairs, place / "decoded")


def training_pairs(spec: RunSpec, folder: Path) -> PairSet:
    """The train split of a run's dataset; raises SisError for any other pairs."""
    pairs = PairSet.open(folder)
    if (pairs.dataset, pairs.split) != (spec.dataset.name, "train"):
        raise SisError(f"training needs {spec.dataset.name}/train, these are pairs of {pairs.dataset}/{pairs.split}")
    return pairs
