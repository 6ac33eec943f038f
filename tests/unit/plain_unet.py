# SPDX-License-Identifier: Apache-2.0
"""SDM's network as plain formulas over a network's weights: no stores, no shared encoder, one branch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sis.diffusion.denoiser import Denoiser, Prediction
from sis.nets.condition import edge_map
from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import Attention, ResBlock, SDMUNet, UNetConfig
from sis.nets.spade import SPADE

LABELS = 6  # five names and the edge channel
DEMO = {"width": 24, "multipliers": [1, 2, 3], "blocks": 1, "attention": [4], "head_channels": 24, "spade_hidden": 16,
        "groups": 32}  # fmt: skip
# Groups of several channels: a norm over two pixels of one channel is a sign, and turns any rounding into anything.
SMALL = {"width": 16, "multipliers": [1, 2, 3], "blocks": 1, "attention": [2, 4], "head_channels": 8, "spade_hidden": 8,
         "groups": 4}  # fmt: skip


def network(patch: int = 1, seed: int = 0, **config: Any) -> PatchedUNet:
    """A network with random weights, none of them zero, whose answers are about as large as its inputs."""
    net = PatchedUNet(UNetConfig.model_validate(SMALL | config), 3, LABELS, patch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            centre = float(weight.ndim == 1 and name.endswith("weight"))  # a norm's scale
            weight.copy_(centre + drawn * (weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1))
    return net.eval()


def label_maps(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Regions around random points with their edges, `(batch, LABELS, height, width)`."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.tensor([height, width]) * torch.rand(batch, 5, 2, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()
    region = torch.cdist(grid.reshape(1, -1, 2), points).argmin(-1)
    names = torch.randint(0, LABELS - 1, (batch, 5), generator=generator)
    shape = (batch, height, width)
    one_hot = F.one_hot(names.gather(1, region).reshape(shape), LABELS - 1).permute(0, 3, 1, 2)
    return torch.cat([one_hot, edge_map(region.reshape(shape))[:, None]], dim=1).float()


def noisy(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def plain(net: PatchedUNet | SDMUNet, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The network's answer, formula by formula."""
    if isinstance(net, PatchedUNet):
        out = plain(net.unet, F.pixel_unshuffle(x, net.patch), t, F.pixel_unshuffle(label, net.patch))
        halves = out.chunk(2, dim=1) if net.learn_sigma else (out,)
        return torch.cat([F.pixel_shuffle(half, net.patch) for half in halves], dim=1)
    half = net.config.width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = t.float()[:, None] * frequency
    emb = F.silu(net.time(F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, net.config.width % 2))))

    def through(modules: Iterable[nn.Module], h: Tensor) -> Tensor:
        for module in modules:
            h = residual(module, h, emb, label) if isinstance(module, ResBlock) else attended(module, h)
        return h

    h = net.stem(torch.cat([x, label], dim=1) if net.config.conditioning == "concat" else x)
    skips = [h]
    for level in net.encoder:
        h = through(level, h)  # type: ignore[arg-type]
        skips.append(h)
    h = through(net.middle, h)
    for level in net.decoder:
        h = through(level, torch.cat([h, skips.pop()], dim=1))  # type: ignore[arg-type]
    return net.head(F.silu(net.norm(h)))


def normed(norm: nn.Module, h: Tensor, label: Tensor) -> Tensor:
    if not isinstance(norm, SPADE):
        return norm.norm(h)  # type: ignore[operator, union-attr]
    hidden = F.relu(norm.shared(F.interpolate(label, size=h.shape[-2:], mode="nearest")))
    return norm.norm(h) * (1 + norm.gamma(hidden)) + norm.beta(hidden)


def residual(block: ResBlock, x: Tensor, emb: Tensor, label: Tensor) -> Tensor:
    def resampled(h: Tensor) -> Tensor:
        if block.resample == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest")
        return F.avg_pool2d(h, 2) if block.resample == "down" else h

    h = block.conv1(resampled(F.silu(normed(block.norm1, x, label))))
    scale, shift = block.embed(emb)[:, :, None, None].chunk(2, dim=1)
    h = normed(block.norm2, h, label) * (1 + scale) + shift
    return block.skip(resampled(x)) + block.conv2(F.silu(h))


def attended(attention: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(attention, Attention)
    b, c, h, w = x.shape
    qkv = attention.qkv(attention.norm(x)).reshape(b, attention.heads, 3, c // attention.heads, h * w)
    q, k, v = qkv.transpose(-1, -2).unbind(dim=2)
    out = F.scaled_dot_product_attention(q, k, v)
    return x + attention.out(out.transpose(-1, -2).reshape(b, c, h, w))


def two_passes(net: PatchedUNet | SDMUNet, label: Tensor, scale: float) -> Denoiser:
    """SDM's Algorithm 2 over `plain`, for a network with learned variance; one pass where nothing guides."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        eps, variance = plain(net, x, t, label).chunk(2, dim=1)
        if scale == 1.0:
            return Prediction(eps, variance)
        null = plain(net, x, t, torch.zeros_like(label)).chunk(2, dim=1)[0]
        return Prediction(null + scale * (eps - null), variance)

    return denoise
