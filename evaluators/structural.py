# SPDX-License-Identifier: Apache-2.0
"""MS-SSIM of all pairs of some images, each image's own terms computed once (Wang, Simoncelli, Bovik 2003).

Equal to pytorch-msssim 1.0.0 with data range 1 where that accepts the size; the exponents of fewer than 5
scales are the first ones of the paper, rescaled to sum 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sis.errors import SisError

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIGMA, C1, C2 = 1.5, 0.01**2, 0.03**2


class _Scale(NamedTuple):
    """One image batch at one scale: pixels, local mean and local variance, `(k, 3, h, w)`."""

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
    k, h, w, _ = images.shape
    if min(h, w) // 2 ** (scales - 1) < window:
        raise SisError(
            f"MS-SSIM with {scales} scales and window {window} does not fit images of {h}x{w}",
            fix="choose fewer scales or a smaller window in the protocol card",
        )
    with torch.inference_mode():
        pyramid = _pyramid(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, scales, window)
        kernel = _kernel(window)
        rows = [_against_later(pyramid, i, kernel, exponents(scales)) for i in range(k - 1)]
    return torch.cat(rows).double().numpy()


def _against_later(pyramid: list[_Scale], i: int, kernel: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Image i against images i+1, i+2, ...: `(k - 1 - i)`."""
    out = torch.ones(())
    for level, (s, weight) in enumerate(zip(pyramid, weights, strict=True)):
        x, mu, var = (t[i : i + 1] for t in s)
        y, mu_y, var_y = (t[i + 1 :] for t in s)
        covariance = _blur(x * y, kernel) - mu * mu_y
        term = (2 * covariance + C2) / (var + var_y + C2)
        if level == len(pyramid) - 1:  # luminance enters at the coarsest scale only
            term = (2 * mu * mu_y + C1) / (mu * mu + mu_y * mu_y + C1) * term
        out = out * torch.relu(term.flatten(2).mean(2)) ** weight
    return out.mean(1)


def _pyramid(x: Tensor, scales: int, window: int) -> list[_Scale]:
    kernel, levels = _kernel(window), []
    for level in range(scales):
        mu = _blur(x, kernel)
        levels.append(_Scale(x, mu, _blur(x * x, kernel) - mu * mu))
        if level < scales - 1:
            x = F.avg_pool2d(x, 2, padding=[s % 2 for s in x.shape[2:]])
    return levels


def _kernel(window: int) -> Tensor:
    offsets = torch.arange(window, dtype=torch.float32) - window // 2
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    return kernel / kernel.sum()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Separable Gaussian without padding, each channel by itself."""
    c = x.shape[1]
    down, across = kernel.view(1, 1, -1, 1).repeat(c, 1, 1, 1), kernel.view(1, 1, 1, -1).repeat(c, 1, 1, 1)
    return F.conv2d(F.conv2d(x, down, groups=c), across, groups=c)
