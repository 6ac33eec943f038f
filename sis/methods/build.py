# SPDX-License-Identifier: Apache-2.0
"""Makes a Python method ready to run: parameters checked, network initialised, weights loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sis.config.files import label_space
from sis.config.strict_yaml import validate
from sis.data.latents import LatentSet
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors
from sis.errors import SisError, first_of
from sis.methods.contract import Context, Method
from sis.methods.discovery import method_class

if TYPE_CHECKING:
    from sis.plan import RunSpec


@dataclass(frozen=True)
class UsedFiles:
    """What other stages made for a method: the model of each role whose weights are needed, the encoded split."""

    models: Mapping[str, Path] = field(default_factory=dict)
    latents: Path | None = None


#: Of a method that works alone.
NO_FILES = UsedFiles()


def ready(spec: RunSpec, model: Path, used: UsedFiles, device: str) -> Method:
    """The method of a run with its trained weights, frozen: what serves other methods."""
    method = build_method(spec, device, None, None, used)
    load_weights(method, model)
    method.network.eval().requires_grad_(False)
    return method


def build_method(
    spec: RunSpec,
    device: str,
    pairs: PairSet | None,
    prior: dict[str, Tensor] | None,
    used: UsedFiles = NO_FILES,
) -> Method:
    """Make the method of a run; its network's initial weights follow from the training seed.

    used: models of its roles; the network of a role that is not among them has shapes alone (device meta).

    Raises SisError for parameters that the method does not know, and for datasets that it cannot do.
    """
    chosen = method_class(spec.method.name)
    reason = chosen.skip(spec.dataset)
    if reason:
        raise SisError(f"{spec.method.name} cannot run on {spec.dataset.name}: {reason}")
    fit = validate(chosen.FitParams, spec.fit, f"run {spec.name}, fit")
    sample = validate(chosen.SampleParams, spec.sample, f"run {spec.name}, sample")
    size = (spec.dataset.size[0], spec.dataset.size[1])
    statistics = validate(chosen.PriorParams, spec.prior, f"run {spec.name}, prior")
    real = pairs if spec.shows_photographs else None
    uses = {role: _role(other, used.models.get(role), device) for role, other in spec.uses.items()}
    latents = _latents(spec, used.latents, device)
    context = Context(
        spec.dataset, label_space(spec.dataset.labels), size, device, real, prior, uses, latents
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        method = chosen(context, fit, sample, statistics)
    if method.network is not None:
        method.network.to(device)
    return method


def _role(spec: RunSpec, model: Path | None, device: str) -> Method:
    if model is not None:
        return ready(spec, model, NO_FILES, device)
    with torch.device("meta"):
        return build_method(spec, "meta", None, None)


def _latents(spec: RunSpec, folder: Path | None, device: str) -> LatentSet | None:
    if folder is None:
        return None
    found = LatentSet.open(folder, "cpu" if device == "meta" else device)
    wanted = spec.uses[spec.method.latents].model_id
    if found.autoencoder != wanted:
        what = f"these latents are of the autoencoder {found.autoencoder}, the run uses {wanted}"
        raise SisError(what, where=folder, fix="encode the split again")
    return found


def load_weights(method: Method, path: Path) -> None:
    """Put a trained model's averaged weights into the method's network.

    Raises SisError for a model of other label maps, of another image size or without averaged weights, and otherwise
    one that lists the keys and shapes that differ.
    """
    if method.network is None:
        raise SisError("this method has no network to load weights into", where=path)
    tensors, facts = load_tensors(path, "model")
    _refuse_another_purpose(method.context, facts, path)
    own = method.network.state_dict()
    faults = [f"missing {k}" for k in own if k not in tensors] + [f"unexpected {k}" for k in tensors if k not in own]
    faults += [
        f"{k} is {tuple(tensors[k].shape)}, the network has {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if faults:
        raise SisError(f"the weights do not fit the network: {first_of(faults)}", where=path)
    method.network.load_state_dict(tensors)


def _refuse_another_purpose(context: Context, facts: dict[str, Any], path: Path) -> None:
    """Raise SisError where a model's facts say that its weights are for something else; imported ones say less."""
    card, fix = context.dataset, "use the dataset that it was trained on, or train a model for this one"
    trained = facts.get("label_width", context.labels.width) + facts.get("edges", card.edges)
    here = context.labels.width + card.edges
    if trained != here:
        what = f"the model was trained on {trained} label channels, {card.name} has {here}"
        raise SisError(what, where=path, fix=fix)
    table, (h, w) = facts.get("labels", context.labels.name), facts.get("size", context.size)
    if table != context.labels.name:
        what = f"the model was trained on the label table {table}, {card.name} has {context.labels.name}"
        raise SisError(what, where=path, fix=fix)
    if (h, w) != context.size:
        what = f"the model was trained on images of {w}x{h}, {card.name} has {context.size[1]}x{context.size[0]}"
        raise SisError(what, where=path, fix=fix)
    if facts.get("weights") == "raw":
        what = "this model holds the last weights of its training, images are drawn with the averaged ones"
        raise SisError(what, where=path, fix=f"use {path.name.replace('-raw', '')} beside it")
