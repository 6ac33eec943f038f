# SPDX-License-Identifier: Apache-2.0
"""Kind `python`: builds a method with its model and prior, and runs it on padded batches with keyed noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.data.pair import Pair
from sis.data.pairs import PairSet
from sis.diffusion.noise import Noise
from sis.errors import SisError, first_of
from sis.methods.contract import MapBatch, Method
from sis.sampling.shards import Key, MakeBatch


def batch_maker(
    method: Method, pairs: PairSet, batch_size: int, seed: int, device: str, styles: PairSet | None = None
) -> MakeBatch:
    """A function that samples keys in batches of exactly `batch_size` (padded by repeating the last key).

    styles: the split that reference photographs come from, for methods that need them.
    """
    if method.network is not None:
        method.network.eval()

    no_instance = np.zeros(pairs.size, np.uint16)

    @torch.inference_mode()
    def make(keys: list[Key]) -> NDArray[np.uint8]:
        padded = keys + [keys[-1]] * (batch_size - len(keys))
        chosen = [pairs.by_id(image_id) for image_id, _ in padded]
        labels = np.stack([pairs.policy.channels(p) for p in chosen])
        instances = np.stack([no_instance if p.instance is None else p.instance for p in chosen]).astype(np.int64)
        maps = MapBatch(
            tuple(k for k, _ in padded),
            tuple(s for _, s in padded),
            torch.from_numpy(labels).long().to(device),
            torch.from_numpy(instances).to(device),
            None if styles is None else _references(chosen, styles).to(device),
        )
        images = method.sample(maps, Noise(seed, tuple(padded), device))
        expected = (len(padded), 3, *pairs.size)
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape != expected:
            got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise SisError(f"a method returns a torch.uint8 tensor {expected}, this one {got}")
        return images[: len(keys)].permute(0, 2, 3, 1).cpu().contiguous().numpy()

    return make


def _references(pairs: list[Pair], styles: PairSet) -> Tensor:
    """The photograph of the wanted style of each pair, uint8 `(b, 3, h, w)`; raises SisError where there is none."""
    without = [p.image_id for p in pairs if not p.reference_id]
    if without:
        fix = "use a dataset whose split names `references:`, or a method that needs none"
        raise SisError(f"no reference photograph for {first_of(without)}", where=styles.dataset, fix=fix)
    photographs = np.stack([styles.by_id(p.reference_id).image for p in pairs])
    return torch.from_numpy(photographs).permute(0, 3, 1, 2).contiguous()
