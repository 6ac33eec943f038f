# SPDX-License-Identifier: Apache-2.0
"""Stage 3 for one method: compute the prior of a run, whole or in parts that are merged, and describe it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sis.data.manifest import Manifest, read_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError
from sis.methods.build import NO_FILES, UsedFiles, build_method, ready
from sis.methods.contract import Method
from sis.plan import RunSpec
from sis.priors.files import read_prior
from sis.priors.labels import latent_labels
from sis.priors.params import Policy
from sis.priors.report import Masks, write_report
from sis.training.train import refuse_missing, training_data, training_pairs

#: Label maps that the report draws, and so many are looked up together.
_DRAWN, _BATCH = 4, 32


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` equal parts of the training set."""

    index: int
    count: int


def compute_prior(
    spec: RunSpec, pairs_folder: Path, out: Path, device: str, used: UsedFiles = NO_FILES, part: Part | None = None
) -> Manifest:
    """Compute the prior of a run from the training pairs, or from what an autoencoder made of them.

    part: compute the statistics over one part of them only, for `merge_priors`.
    """
    run, pairs = RunRecord.start(device=device), training_pairs(spec, pairs_folder)
    refuse_missing(spec, used, {})
    method, data = _method(spec, device, used), training_data(pairs, pairs_folder)
    if part is None:
        return _written(spec, method, method.prior(data), out, run, {"count": len(pairs)})
    if not 0 <= part.index < part.count:
        raise SisError(f"there is no shard {part.index} of {part.count}", fix="count from 0")
    tensors = method.prior_shard(data, part.index, part.count)
    return _written(spec, method, tensors, out, run, {"shard": [part.index, part.count]})


def merge_priors(spec: RunSpec, shards: Sequence[Path], out: Path) -> Manifest:
    """Make the prior of a run from the statistics over all parts of the training set, in any order."""
    run = RunRecord.start(device="cpu")
    method = _method(spec, "cpu", NO_FILES)
    return _written(spec, method, method.merged_prior(shards), out, run, {"merged": [path.name for path in shards]})


def _method(spec: RunSpec, device: str, used: UsedFiles) -> Method:
    if not spec.method.has_prior:
        raise SisError(f"method {spec.method.name} has no prior")
    # Nothing but latents is needed: a network of a billion weights would be made for nothing.
    with torch.device("meta") if spec.method.prior_of_latents else nullcontext():
        place, latents = "meta" if spec.method.prior_of_latents else device, UsedFiles(latents=used.latents)
        return build_method(spec, place, None, None, latents)


def _written(
    spec: RunSpec, method: Method, tensors: dict[str, Tensor], out: Path, run: RunRecord, facts: dict
) -> Manifest:  # fmt: skip
    known = {"method": spec.method.name, "prior_id": spec.prior_id, "dataset": spec.dataset.name}
    if spec.latents_id:
        known |= {"latents": spec.latents_id, "prior": method.prior_params.model_dump()}
    save_tensors(tensors, out, "prior", known | facts, run)
    return read_manifest(out, "prior")


def describe_prior(spec: RunSpec, prior: Path, pairs_folder: Path, autoencoder: Path, out: Path, device: str) -> None:
    """Write what a prior rests on: counts, shares of tokens that fall back over a split, pictures of its means."""
    if not spec.method.prior_of_latents:
        raise SisError(f"method {spec.method.name} has no prior of latents", where=prior)
    tensors, _ = load_tensors(prior, "prior")
    found, facts = read_prior(tensors, prior)
    facts.require(dataset=spec.dataset.name, size=spec.dataset.size, where=prior)
    role = spec.uses[spec.method.latents]
    first_stage = ready(role, autoencoder, NO_FILES, device).network
    pairs = PairSet.open(pairs_folder)
    labels = torch.cat(list(_small(pairs, found.shape[1:], min(_DRAWN, len(pairs)))))[:_DRAWN]
    space = pairs.labels
    masks = Masks(tuple(pairs.ids[:_DRAWN]), labels, space.palette(), tuple(c.name for c in space.classes))
    policy = Policy.model_validate({k: v for k, v in spec.sample.items() if k in Policy.model_fields})
    with torch.inference_mode():
        write_report(out, found, facts, _small(pairs, found.shape[1:], len(pairs)), policy, masks, first_stage.decode)


def _small(pairs: PairSet, size: Sequence[int], count: int) -> Iterator[Tensor]:
    """The first label maps of a split at the latents' size, int64 `(b, h, w)`, a batch at a time."""
    for start in range(0, count, _BATCH):
        chosen = [pairs.get(i) for i in range(start, min(start + _BATCH, count))]
        channels = torch.stack([torch.from_numpy(pairs.policy.channels(pair)) for pair in chosen])
        yield torch.from_numpy(latent_labels(channels, (size[0], size[1])))
