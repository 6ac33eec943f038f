# SPDX-License-Identifier: Apache-2.0
"""The guided denoiser of SDM without repeated work: the same images from a good deal less arithmetic.

In SDM the label map reaches the network through SPADE alone, whose scales and shifts depend on neither x_t nor t. So
they are computed once for a batch of label maps and serve the whole chain; the encoder, which never sees the label map,
runs once for both branches of classifier-free guidance; the null branch needs nine values a channel instead of maps.
None of it changes the mathematics (docs/performance.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from sis.config.base import StrictModel
from sis.diffusion.denoiser import Denoiser, Prediction, guided, mixed, network_denoiser, prediction
from sis.diffusion.schedule import Schedule
from sis.errors import SisError
from sis.nets.modulation import LabelMaps
from sis.nets.patches import PatchedUNet
from sis.nets.sampling_unet import SamplingUNet
from sis.nets.sdm_unet import SDMUNet


@dataclass(frozen=True)
class Reuse:
    """How much of the order of operations may change, and what it may cost.

    bitwise: keep the order of every operation, so that float32 gives the bits of two plain passes; slower. Otherwise
        results differ in the last digits (relative 1e-5 of the largest value).
    budget: bytes for the stored scales and shifts of a batch; None stores all. What does not fit is shared between
        equal neighbourhoods of the label map, or else computed anew at every step. No bit of an image depends on it.
    dtype: of convolutions and stores; norms are float32 always.
    compiled: let torch.compile fuse the pass. The first step then takes minutes on large networks.
    """

    bitwise: bool = False
    budget: int | None = None
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.bitwise and (self.compiled or self.dtype != torch.float32):
            raise SisError("bitwise reuse works in float32 and is not compiled", fix="drop one of the two wishes")


class ReuseParams(StrictModel):
    """Sampling parameters of every method on SDM's network: how much of the work is shared, and in which type."""

    fast: bool | Literal["bitwise"] = Field(
        default="bitwise",
        description="reuse what steps share: `bitwise` the same bits, `true` quicker, equal to about 1e-5",
    )
    reuse_memory: int = Field(default=2048, ge=0, description="MiB that reuse may keep for a batch")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="of convolutions with `fast: true`: auto is float16 on a GPU, float32 on a CPU"
    )
    compiled: bool = Field(default=False, description="let torch.compile fuse the pass of `fast: true`")

    def reuse(self, gpu: bool) -> Reuse:
        """What these parameters mean on a device; `fast: false` means none of it."""
        auto = "float16" if gpu and self.fast is True else "float32"
        dtype = getattr(torch, auto if self.dtype == "auto" else self.dtype)
        return Reuse(self.fast == "bitwise", self.reuse_memory * 2**20, dtype, self.compiled)


def guided_network(
    network: SDMUNet | PatchedUNet,
    label: Tensor,
    scale: float,
    learn_sigma: bool,
    params: ReuseParams,
    velocity: Schedule | None = None,
) -> Denoiser:
    """The network under label maps `(b, k, h, w)` with guidance against none, plainly or with reuse."""
    if params.fast:
        return reused_guided(network, label, scale, learn_sigma, velocity, params.reuse(label.is_cuda))
    with_label = network_denoiser(network, label, learn_sigma, velocity)
    return guided(with_label, network_denoiser(network, torch.zeros_like(label), learn_sigma, velocity), scale)


class _Pass(Protocol):
    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]: ...


def reused_guided(
    network: SDMUNet | PatchedUNet,
    label: Tensor,
    scale: float,
    learn_sigma: bool,
    velocity: Schedule | None = None,
    how: Reuse = Reuse(),
) -> Denoiser:
    """`guided` over two `network_denoiser`s, one with the label map and one with zeros, made once for a whole chain.

    Args:
        network: its weights must not change while the denoiser is in use.
        label: one-hot map, edge channel included, `(b, k, h, w)`, as large as the images.
        scale: guidance; 1 is none, and then there is no null branch at all.
        learn_sigma, velocity: as in `network_denoiser`.
        how: see `Reuse`.

    Returns:
        A denoiser for images `(b, c, h, w)`, all at the same step. It computes no gradients. Raises SisError for a
        batch of another size than the label map's.
    """
    patched = network if isinstance(network, PatchedUNet) else None
    unet, inner = (patched.unet, patched.folded(label)) if patched else (network, label)
    size, null = (inner.shape[-2], inner.shape[-1]), scale != 1.0
    assert isinstance(unet, SDMUNet)
    with torch.no_grad():
        branches: _Pass
        if how.bitwise:
            zeros = torch.zeros_like(label)
            branches = _InOrder(
                unet, inner, (patched.folded(zeros) if patched else zeros) if null else None, how.budget
            )
        else:
            branches = SamplingUNet(unet, inner, size, null, how.budget, how.dtype, how.compiled)

    @torch.no_grad()
    def denoise(x: Tensor, t: Tensor) -> Prediction:
        if (len(x), *x.shape[-2:]) != (len(label), *label.shape[-2:]):
            raise SisError(f"images {tuple(x.shape)} do not fit label maps {tuple(label.shape)}")
        outputs = branches(patched.folded(x) if patched else x, t)
        with_label, without = (
            None if out is None else prediction(patched.unfolded(out) if patched else out, x, t, learn_sigma, velocity)
            for out in outputs
        )
        assert with_label is not None
        return with_label if without is None else mixed(with_label, without, scale)

    return denoise


class _InOrder:
    """Both branches in the plain order of operations, each by itself, with stored modulations."""

    def __init__(self, unet: SDMUNet, label: Tensor, zeros: Tensor | None, budget: int | None) -> None:
        self.unet, norms = unet, unet.spade_norms((label.shape[-2], label.shape[-1]))
        self.conditions: list[tuple[Tensor, LabelMaps]] = []
        if zeros is not None:
            # A null map serves the whole batch, so a byte saves more there: it comes first.
            self.conditions.append((zeros, LabelMaps(norms, zeros, budget, alike=True)))
            budget = None if budget is None else budget - self.conditions[0][1].bytes
        self.conditions.insert(0, (label, LabelMaps(norms, label, budget)))

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        unet, outputs, encoded = self.unet, [], None
        emb = unet.embedding(t)
        for label, maps in self.conditions:
            if encoded is None or unet.encoder_sees_label:
                encoded = unet.encode(x, emb, label if unet.config.conditioning == "concat" else maps)
            h, skips = encoded
            outputs.append(unet.decode(h, list(skips), emb, maps))
        return outputs[0], outputs[1] if len(outputs) == 2 else None
