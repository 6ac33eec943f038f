# SPDX-License-Identifier: Apache-2.0
"""What a method offers whose pictures can be edited and whose sampling can be watched."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from sis.diffusion.denoiser import Denoiser
from sis.diffusion.noise import Noise
from sis.diffusion.schedule import Schedule


@runtime_checkable
class PixelDiffusion(Protocol):
    """A method that draws pictures by denoising pixels in [-1, 1]; having these three functions is being one.

    Sampling parameters called `clip`, `variance`, `channel_statistics` and `eta`, where a method has them, mean what
    they mean in `sis.diffusion.samplers`; one called `sampler` is "ddpm" where steps are ancestral; one called
    `guidance` is 1 for none.
    """

    def denoiser(self, labels: Tensor, instances: Tensor | None = None) -> Denoiser:
        """The network with everything that guides it, under label maps `(b, h, w)`; both as in `MapBatch`."""
        ...

    def chain(self) -> Schedule:
        """The steps that sampling visits."""
        ...

    def draw(self, denoiser: Denoiser, x: Tensor, noise: Noise) -> Tensor:
        """Images `(b, 3, h, w)` about [-1, 1] from x_T by the method's own sampler, one call a step."""
        ...
