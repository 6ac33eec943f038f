# SPDX-License-Identifier: Apache-2.0
"""SSIM and MS-SSIM of all pairs of some images, each image's own terms computed once (Wang, Simoncelli, Bovik 2003).

Equal to pytorch-msssim 1.0.0 where that accepts the size; the exponents of fewer than 5 scales are the first ones of
the paper, rescaled to sum 1. Of a pair only the covariance is left to compute: one Gaussian filter in place of five.

The images lie side by side as the channels of one picture, innermost in memory: a filter of each channel by itself then
runs over whole vector registers, ten times as fast as over three channels. Pairs that are equally far apart are two
slices of those channels, so that a product of many pairs copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sis.errors import SisError

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Elements of the products formed at once: all pairs of one distance for images of up to 256x256, a few of larger ones.
_BLOCK = 20 * 3 * 256 * 256


@dataclass(frozen=True)
class Ssim:
    """What an SSIM depends on.

    window: side of the Gaussian window, odd; sigma: its width, in pixels; k1, k2: constants of luminance and contrast;
    exponents: of the scales, finest first; data_range: largest value minus smallest of the images' format.
    """

    window: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    exponents: tuple[float, ...] = EXPONENTS
    data_range: float = 1.0

    @property
    def c1(self) -> float:
        """The luminance term's constant."""
        return (self.k1 * self.data_range) ** 2

    @property
    def c2(self) -> float:
        """The contrast term's constant."""
        return (self.k2 * self.data_range) ** 2

    def kernel(self) -> Tensor:
        """The window along one axis, which sums to 1."""
        offsets = torch.arange(self.window, dtype=torch.float32) - self.window // 2
        kernel = torch.exp(-(offsets**2) / (2 * self.sigma**2))
        return kernel / kernel.sum()


class _Scale(NamedTuple):
    """All images at one scale: pixels, local mean and local variance, `(1, k c, h, w)`, channels last in memory."""

    x: Tensor
    mu: Tensor
    var: Tensor

    def of(self, channels: slice) -> _Scale:
        return _Scale(*(t[:, channels] for t in self))


def exponents(scales: int) -> tuple[float, ...]:
    """Weights of the scales, finest first; they sum to 1 for fewer than 5 and are the paper's for 5."""
    total = 1.0 if scales == 5 else sum(EXPONENTS[:scales])
    return tuple(e / total for e in EXPONENTS[:scales])


def pairwise_ms_ssim(images: NDArray[np.uint8], scales: int, window: int) -> NDArray[np.float64]:
    """MS-SSIM of all pairs i < j of `(k, h, w, 3)`, in row order: `(k (k - 1) / 2)` values in 0..1.

    Raises SisError where the window does not fit the coarsest scale.
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return ms_ssim(x, Ssim(window, exponents=exponents(scales)))


def ms_ssim(x: Tensor, how: Ssim) -> NDArray[np.float64]:
    """MS-SSIM of all pairs i < j of float32 `(k, c, h, w)` within `how.data_range`, as `pairwise_ms_ssim`.

    Contrast terms below 0 count as 0, so that unrelated images give 0. Raises SisError as that does.
    """
    with torch.inference_mode():
        pyramid = _pyramid(x, how, len(how.exponents))
        return _all_pairs(x, pyramid, how, contrast_clipped=True)


def ssim(x: Tensor, how: Ssim) -> NDArray[np.float64]:
    """SSIM of all pairs i < j of float32 `(k, c, h, w)`: one scale, and values below 0 stay (-1..1)."""
    with torch.inference_mode():
        return _all_pairs(x, _pyramid(x, how, 1), replace(how, exponents=(1.0,)), contrast_clipped=False)


def _all_pairs(x: Tensor, pyramid: list[_Scale], how: Ssim, contrast_clipped: bool) -> NDArray[np.float64]:
    """The product of the scales' terms for all pairs i < j, mean over the channels of `(k, c, h, w)`, in row order."""
    k, c = x.shape[:2]
    found = torch.zeros(k, k, device=x.device)
    for first, second in _blocks(k, max(1, _BLOCK // x[0].numel())):
        one, two = (slice(images.start * c, images.stop * c) for images in (first, second))
        value = torch.ones((), device=x.device)
        for level, (scale, weight) in enumerate(zip(pyramid, how.exponents, strict=True)):
            coarsest = level == len(pyramid) - 1  # luminance enters at the coarsest scale only
            term = _similarity(scale.of(one), scale.of(two), how, luminance=coarsest)
            value = value * (torch.relu(term) ** weight if contrast_clipped else term)
        found[first, second].diagonal().copy_(value.view(-1, c).mean(1))
    rows, columns = torch.triu_indices(k, k, 1)
    return found[rows, columns].double().cpu().numpy()


def _blocks(k: int, run: int) -> Iterator[tuple[slice, slice]]:
    """All pairs i < j of k images as equally long slices, at most `run` pairs each."""
    for apart in range(1, k):
        for i in range(0, k - apart, run):
            stop = min(i + run, k - apart)
            yield slice(i, stop), slice(i + apart, stop + apart)


def _similarity(one: _Scale, two: _Scale, how: Ssim, luminance: bool) -> Tensor:
    """The contrast and structure term, times the luminance term if asked for, mean over pixels: `(n c)`.

    In place wherever a temporary has served: the time goes into moving memory.
    """
    means = one.mu * two.mu
    covariance = _blur(one.x * two.x, how.kernel()).sub_(means)
    term = covariance.mul_(2).add_(how.c2).div_((one.var + two.var).add_(how.c2))
    if luminance:
        squares = (one.mu * one.mu).add_(two.mu * two.mu)
        term.mul_(means.mul_(2).add_(how.c1)).div_(squares.add_(how.c1))
    return term.mean((0, 2, 3))


def _pyramid(x: Tensor, how: Ssim, scales: int) -> list[_Scale]:
    h, w = x.shape[2:]
    if -(-min(h, w) // 2 ** (scales - 1)) < how.window:  # halving rounds up
        name = "SSIM" if scales == 1 else f"MS-SSIM with {scales} scales"
        raise SisError(
            f"{name} and window {how.window} does not fit images of {h}x{w}",
            fix="choose fewer scales or a smaller window in the protocol card",
        )
    kernel, levels = how.kernel(), []
    x = x.reshape(1, -1, h, w).contiguous(memory_format=torch.channels_last)
    for level in range(scales):
        mu = _blur(x, kernel)
        levels.append(_Scale(x, mu, _blur(x * x, kernel).sub_(mu * mu)))
        if level < scales - 1:
            x = F.avg_pool2d(x, 2, padding=[s % 2 for s in x.shape[2:]])
    return levels


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Separable Gaussian without padding, each channel by itself."""
    c, kernel = x.shape[1], kernel.to(x.device)
    down, across = (
        kernel.view(shape).expand(c, 1, -1, -1).contiguous(memory_format=torch.channels_last)
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1))
    )
    return F.conv2d(F.conv2d(x, down, groups=c), across, groups=c)
