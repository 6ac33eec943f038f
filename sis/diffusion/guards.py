# SPDX-License-Identifier: Apache-2.0
"""Refusals while images are sampled: answers that are not finite, batches that do not fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sis.diffusion.denoiser import Denoiser, Prediction
from sis.errors import SisError, first_of


def finite(denoiser: Denoiser, image_ids: Sequence[str]) -> Denoiser:
    """The same denoiser, which refuses an answer that is not finite, naming the step and the images.

    Clipping would turn an infinite answer into a black or white picture; so it is the answer that is looked at.
    """

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        answer = denoiser(x, t)
        good = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for part in answer:
            if part is not None:
                good &= torch.isfinite(part).flatten(1).all(1)
        if not bool(good.all()):
            bad = [i for i, ok in zip(image_ids, good.tolist(), strict=True) if not ok]
            raise SisError(
                f"the network's answer is not finite at step t = {int(t[0])}: {first_of(dict.fromkeys(bad))}",
                fix="check the model; with a half-precision type, try float32",
            )
        return answer

    return denoise


@contextmanager
def fitting(batch: int, size: tuple[int, int]) -> Iterator[None]:
    """Turn an exhausted memory into a refusal that names the batch and the largest power of two below it."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # The CPU's allocator has no error of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        smaller = 1 << (batch - 1).bit_length() - 1 if batch > 1 else 0
        fix = f"set the experiment's batch_size to {smaller}" if smaller else "use smaller images or more memory"
        what = f"out of memory: a batch of {batch} images of {size[0]}x{size[1]} does not fit"
        raise SisError(what, fix=fix) from None
