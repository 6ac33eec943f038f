# SPDX-License-Identifier: Apache-2.0
"""Guards: an answer that is not finite and a batch that does not fit the memory are refused in words that help."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import Tensor
from two_starts import NOISE

from sis.diffusion import guards, samplers
from sis.diffusion.denoiser import Prediction
from sis.diffusion.schedule import linear
from sis.errors import SisError


def test_an_answer_that_is_not_finite_is_refused_with_its_step_and_its_images() -> None:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        bad = torch.zeros_like(x)
        bad[1, 0, 0, 0] = math.inf if int(t[0]) < 20 else 0  # the clipping would hide it
        return Prediction(bad, None)

    watched, chain = guards.finite(denoise, ("val-1", "val-2")), linear(50).respaced(5)
    with pytest.raises(SisError, match=r"not finite at step t = 12: val-2 "):
        samplers.ddim(watched, chain, torch.zeros(2, 3, 4, 4), NOISE)
    finite = samplers.ddim(denoise, chain, torch.zeros(2, 3, 4, 4), NOISE)
    assert torch.isfinite(finite).all(), "unwatched, nobody sees it"


def test_a_variance_that_is_not_a_number_is_refused_and_a_padded_image_is_named_once() -> None:
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(x, torch.full_like(x, math.nan))

    with pytest.raises(SisError, match=r"t = 7: a, b ") as caught:
        guards.finite(denoise, ("a", "b", "b", "b"))(torch.zeros(4, 1, 2, 2), torch.full((4,), 7))
    assert "b, b" not in str(caught.value)


@pytest.mark.parametrize(("batch", "smaller"), [(2, "1"), (3, "2"), (16, "8"), (24, "16")])
def test_a_batch_that_does_not_fit_the_memory_is_refused_with_a_smaller_one_to_try(batch: int, smaller: str) -> None:
    words = rf"a batch of {batch} images of 32x64 does not fit - .*batch_size to {smaller}$"
    with pytest.raises(SisError, match=words), guards.fitting(batch, (32, 64)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_one_image_that_does_not_fit_is_not_answered_with_a_batch_of_none() -> None:
    words = "a batch of 1 images of 8x8 does not fit - use smaller images or more memory"
    with pytest.raises(SisError, match=words), guards.fitting(1, (8, 8)):
        torch.empty(2**60)  # the CPU's allocator has an error of its own


def test_other_errors_of_a_batch_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), guards.fitting(4, (8, 8)):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(("batch", "fits"), [(2, 1), (9, 5), (64, 63), (7, 0)])
def test_the_largest_batch_that_fits_is_found_by_trying(batch: int, fits: int) -> None:
    tried: list[int] = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count > fits:
            torch.empty(2**60)

    words = f"batch_size to {fits}, the largest that fits$" if fits else "use smaller images or more memory$"
    with pytest.raises(SisError, match=words), guards.fitting(batch, (8, 8), attempt):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert len(tried) <= 6 and len(set(tried)) == len(tried)


def test_what_filled_the_memory_is_let_go_before_a_smaller_batch_is_tried() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def work() -> None:
        maps = torch.zeros(3)
        kept.append(weakref.ref(maps))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def attempt(count: int) -> None:
        assert kept[0]() is None

    with pytest.raises(SisError, match="batch_size to 3"), guards.fitting(4, (8, 8), attempt):
        work()
