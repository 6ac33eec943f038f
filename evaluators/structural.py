# SPDX-License-Identifier: Apache-2.0
"""SSIM and MS-SSIM of all pairs of some images, each image's own terms computed once (Wang, Simoncelli, Bovik 2003).

Equal to pytorch-msssim 1.0.0 where that accepts the size; the exponents of fewer than 5 scales are the first ones of
the paper, rescaled to sum 1. Of a pair only the covariance is left to compute: one Gaussian filter in place of five.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sis.errors import SisError

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Elements of the products formed at once: all partners of an image of up to 256x256, a few of a larger one.
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
    """One image batch at one scale: pixels, local mean and local variance, `(k, c, h, w)`."""

    x: Tensor
    mu: Tensor
    var: Tensor


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

        def value(i: int, later: slice) -> Tensor:
            out = torch.ones((), device=x.device)
            for level, (scale, weight) in enumerate(zip(pyramid, how.exponents, strict=True)):
                coarsest = level == len(pyramid) - 1  # luminance enters at the coarsest scale only
                term = _similarity(scale, i, later, how, luminance=coarsest)
                out = out * torch.relu(term) ** weight
            return out

        return _all_pairs(x, value)


def ssim(x: Tensor, how: Ssim) -> NDArray[np.float64]:
    """SSIM of all pairs i < j of float32 `(k, c, h, w)`: one scale, and values below 0 stay (-1..1)."""
    with torch.inference_mode():
        (scale,) = _pyramid(x, how, 1)
        return _all_pairs(x, lambda i, later: _similarity(scale, i, later, how, luminance=True))


def _all_pairs(x: Tensor, value: Callable[[int, slice], Tensor]) -> NDArray[np.float64]:
    """Values of image i against some later ones, `(n, c)`, for all of them; the mean over channels, as a row."""
    k, run = len(x), max(1, _BLOCK // x[0].numel())
    parts = [slice(j, min(j + run, k)) for i in range(k - 1) for j in range(i + 1, k, run)]
    firsts = [i for i in range(k - 1) for _ in range(i + 1, k, run)]
    rows = [value(i, later).mean(1) for i, later in zip(firsts, parts, strict=True)]
    return torch.cat(rows).double().cpu().numpy()


def _similarity(scale: _Scale, i: int, later: slice, how: Ssim, luminance: bool) -> Tensor:
    """The contrast and structure term, times the luminance term if asked for, mean over pixels: `(n, c)`."""
    x, mu, var = (t[i : i + 1] for t in scale)
    y, mu_y, var_y = (t[later] for t in scale)
    covariance = _blur(x * y, how.kernel()) - mu * mu_y
    term = (2 * covariance + how.c2) / (var + var_y + how.c2)
    if luminance:
        term = (2 * mu * mu_y + how.c1) / (mu * mu + mu_y * mu_y + how.c1) * term
    return term.flatten(2).mean(2)


def _pyramid(x: Tensor, how: Ssim, scales: int) -> list[_Scale]:
    h, w = x.shape[2:]
    if -(-min(h, w) // 2 ** (scales - 1)) < how.window:  # halving rounds up
        name = "SSIM" if scales == 1 else f"MS-SSIM with {scales} scales"
        raise SisError(
            f"{name} and window {how.window} does not fit images of {h}x{w}",
            fix="choose fewer scales or a smaller window in the protocol card",
        )
    kernel, levels = how.kernel(), []
    for level in range(scales):
        mu = _blur(x, kernel)
        levels.append(_Scale(x, mu, _blur(x * x, kernel) - mu * mu))
        if level < scales - 1:
            x = F.avg_pool2d(x, 2, padding=[s % 2 for s in x.shape[2:]])
    return levels


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Separable Gaussian without padding, each channel by itself."""
    c, kernel = x.shape[1], kernel.to(x.device)
    down, across = kernel.view(1, 1, -1, 1).repeat(c, 1, 1, 1), kernel.view(1, 1, 1, -1).repeat(c, 1, 1, 1)
    return F.conv2d(F.conv2d(x, down, groups=c), across, groups=c)
