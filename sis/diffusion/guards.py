# SPDX-License-Identifier: Apache-2.0
"""Refusals while images are sampled: answers that are not finite, batches that do not fit the memory."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
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
def fitting(batch: int, size: tuple[int, int], attempt: Callable[[int], object] | None = None) -> Iterator[None]:
    """Turn an exhausted memory into a refusal that names the batch and the largest one that fits.

    attempt: does what needs the memory with the first so many images; tried until the largest number is found. None:
        the refusal names the largest power of two below the batch instead.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
    smaller = 1 << (batch - 1).bit_length() - 1 if batch > 1 else 0
    found = smaller if attempt is None else largest_fitting(batch, attempt)
    known = "" if attempt is None else ", the largest that fits"
    fix = f"set the experiment's batch_size to {found}{known}" if found else "use smaller images or more memory"
    raise SisError(f"out of memory: a batch of {batch} images of {size[0]}x{size[1]} does not fit", fix=fix) from None


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of torch means that memory is exhausted; the CPU's allocator has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def largest_fitting(batch: int, attempt: Callable[[int], object]) -> int:
    """The largest number of images below `batch` whose attempt fits the memory, by bisection; 0 where none does."""
    fits, fails = 0, batch
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            attempt(middle)
            fits = middle
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_exhausted(error):
                raise
            traceback.clear_frames(error.__traceback__)
            fails = middle
    return fits
