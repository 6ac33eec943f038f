# SPDX-License-Identifier: Apache-2.0
"""Kind `python`: builds a method with its model and prior, and runs it on padded batches with keyed noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.config.strict_yaml import validate
from sis.data.pairs import PairSet
from sis.diffusion.noise import Noise
from sis.errors import SisError, first_of
from sis.methods.contract import Context, MapBatch, Method
from sis.methods.discovery import method_class
from sis.plan import RunSpec
from sis.sampling.shards import Key, MakeBatch
from sis.training.state import load_tensors


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
    from sis.config.files import label_space

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


def batch_maker(method: Method, pairs: PairSet, batch_size: int, seed: int, device: str) -> MakeBatch:
    """A function that samples keys in batches of exactly `batch_size` (padded by repeating the last key)."""
    if method.network is not None:
        method.network.eval()

    @torch.inference_mode()
    def make(keys: list[Key]) -> NDArray[np.uint8]:
        padded = keys + [keys[-1]] * (batch_size - len(keys))
        chosen = [pairs.by_id(image_id) for image_id, _ in padded]
        labels = np.stack([pairs.labels.channels(p.label, where=p.image_id) for p in chosen])
        instances = np.stack([p.instance for p in chosen]).astype(np.int64)
        maps = MapBatch(
            tuple(k for k, _ in padded),
            tuple(s for _, s in padded),
            torch.from_numpy(labels).long().to(device),
            torch.from_numpy(instances).to(device),
        )
        images = method.sample(maps, Noise(seed, tuple(padded), device))
        expected = (len(padded), 3, *pairs.size)
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape != expected:
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise SisError(f"a method returns a torch.uint8 tensor {expected}, this one {got}")
        return images[: len(keys)].permute(0, 2, 3, 1).cpu().contiguous().numpy()

    return make
