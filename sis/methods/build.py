# SPDX-License-Identifier: Apache-2.0
"""Makes a Python method ready to run: parameters checked, network initialised, weights loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sis.config.files import label_space
from sis.config.strict_yaml import validate
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors
from sis.errors import SisError, first_of
from sis.methods.contract import Context, Method
from sis.methods.discovery import method_class

if TYPE_CHECKING:
    from sis.plan import RunSpec


def build_method(spec: RunSpec, device: str, pairs: PairSet | None, prior: dict[str, Tensor] | None) -> Method:
    """Make the method of a run; its network's initial weights follow from the training seed.

    Raises SisError for parameters that the method does not know, and for datasets that it cannot do.
    """
    chosen = method_class(spec.method.name)
    reason = chosen.skip(spec.dataset)
    if reason:
        raise SisError(f"{spec.method.name} cannot run on {spec.dataset.name}: {reason}")
    fit = validate(chosen.FitParams, spec.fit, f"run {spec.name}, fit")
    sample = validate(chosen.SampleParams, spec.sample, f"run {spec.name}, sample")
    size = (spec.dataset.size[0], spec.dataset.size[1])
    real = pairs if "pairs" in chosen.NEEDS else None
    context = Context(spec.dataset, label_space(spec.dataset.labels), size, device, real, prior)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        method = chosen(context, fit, sample)
    if method.network is not None:
        method.network.to(device)
    return method


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
