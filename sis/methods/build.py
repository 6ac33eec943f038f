# SPDX-License-Identifier: Apache-2.0
"""Makes a Python method ready to run: parameters checked, network initialised, weights loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

    Raises SisError listing the keys and shapes that differ.
    """
    if method.network is None:
        raise SisError("this method has no network to load weights into", where=path)
    tensors, _ = load_tensors(path, "model")
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
