# SPDX-License-Identifier: Apache-2.0
"""SDM's U-Net: a plain encoder sees the noisy image, a SPADE decoder sees the label map (SDM, Fig. 2 and Sec. III-B).

The rows of the paper's Table IV are values of `conditioning`: SPADE in the decoder (SDM), in the encoder, in both, or
the label map as further input channels of a network without SPADE. The middle block goes with the decoder.

Facts that the paper leaves open follow the authors' code: the middle block is SPADE too; up and down sampling happen
inside residual blocks; attention splits heads before it splits queries, keys and values; the sinusoid puts cosines
first; the second convolution of every block, the attention output and the last convolution start at zero.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sis.config.base import StrictModel
from sis.nets.spade import SPADE, AffineNorm, Modulations, groups_of


class UNetConfig(StrictModel):
    """Shape of the network. The defaults are the published 256x256 model."""

    width: int = Field(default=256, ge=4, description="channels of the first level")
    multipliers: Annotated[list[int], Field(min_length=1)] = Field(
        default=[1, 1, 2, 2, 4, 4], description="channels of each level, in units of width"
    )
    blocks: int = Field(default=2, ge=1, description="residual blocks a level (the decoder has one more)")
    attention: list[int] = Field(default=[8, 16, 32], description="down-sampling factors with self-attention")
    head_channels: int = Field(default=64, ge=1, description="channels of an attention head")
    spade_hidden: int = Field(default=128, ge=1, description="hidden channels of a SPADE layer")
    groups: int = Field(default=32, ge=1, description="groups of every group norm; narrow networks want fewer")
    conditioning: Literal["spade", "spade_encoder", "spade_both", "concat"] = Field(
        default="spade",
        description="SPADE in middle and decoder (SDM), in the encoder, in all three, or the label map as extra input "
        "channels (Table IV: Dec, Enc, Enc+Dec, x)",
    )
    learn_sigma: bool = Field(default=True, description="predict the variance's interpolation too")


def timestep_embedding(t: Tensor, width: int, period: float = 10000) -> Tensor:
    """Sinusoids of the time step: float32 `(b, width)`, cosines first; period: the longest, over 2 pi."""
    half = width // 2
    frequency = torch.exp(-math.log(period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    embedding = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


def _zeroed(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """Residual block, conditioned on time by scale and shift, and on the label map if its norms are SPADE."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        groups: int,
        resample: Literal["", "up", "down"] = "",
        spade: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()

        def norm(c: int) -> nn.Module:
            return SPADE(c, *spade, groups) if spade else AffineNorm(c, groups)

        self.resample = resample
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * channels)
        self.norm2 = norm(channels)
        self.conv2 = _zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Identity() if channels_in == channels else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, emb: Tensor, label: Tensor | Modulations) -> Tensor:
        """Map features `(b, c, h, w)` to `(b, c', h', w')`; emb is the time embedding after its SiLU."""
        h = self.conv1(self._resampled(F.silu(self.norm1(x, label))))
        scale, shift = self.embed(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h, label) * (1 + scale) + shift
        return self.skip(self._resampled(x)) + self.conv2(F.silu(h))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of `size`."""
        if self.resample == "up":
            return 2 * size[0], 2 * size[1]
        return (size[0] // 2, size[1] // 2) if self.resample == "down" else size

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x


class Attention(nn.Module):
    """Self-attention over all pixels of a level."""

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = nn.GroupNorm(groups_of(channels, groups), channels, eps=1e-5)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, emb: Tensor, label: Tensor | Modulations) -> Tensor:
        """Attend within features `(b, c, h, w)`; time and label are not used."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, self.heads, 3, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=2)  # each (b, heads, h*w, c / heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))


class Level(nn.ModuleList):
    """Modules applied one after another with the same time embedding and label map."""

    def forward(self, x: Tensor, emb: Tensor, label: Tensor | Modulations) -> Tensor:
        for module in self:
            x = module(x, emb, label)
        return x


class SDMUNet(nn.Module):
    """The denoising network eps_theta(x_t, t, label), with variance channels where the schedule learns them."""

    def __init__(self, config: UNetConfig, channels: int, label_channels: int) -> None:
        super().__init__()
        self.config = config
        width, emb = config.width, 4 * config.width
        spade = (label_channels, config.spade_hidden)
        self.encoder_sees_label = config.conditioning != "spade"
        self.checkpointing = False  # training only: keep each block's inputs, compute its inside again for gradients
        self.time = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        extra = label_channels if config.conditioning == "concat" else 0
        self.stem = nn.Conv2d(channels + extra, width * config.multipliers[0], 3, padding=1)
        skips = self._build_encoder(emb, spade if config.conditioning in ("spade_encoder", "spade_both") else None)
        self._build_decoder(emb, spade if config.conditioning in ("spade", "spade_both") else None, skips)
        last = width * config.multipliers[0]
        self.norm = nn.GroupNorm(groups_of(last, config.groups), last, eps=1e-5)
        self.head = _zeroed(nn.Conv2d(last, channels * (2 if config.learn_sigma else 1), 3, padding=1))

    def _build_encoder(self, emb: int, spade: tuple[int, int] | None) -> list[int]:
        config, channels = self.config, self.config.width * self.config.multipliers[0]
        self.encoder, skips = nn.ModuleList(), [channels]
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                block = Level([ResBlock(channels, config.width * multiplier, emb, config.groups, spade=spade)])
                channels = config.width * multiplier
                if 2**level in config.attention:
                    block.append(Attention(channels, config.head_channels, config.groups))
                self.encoder.append(block)
                skips.append(channels)
            if level < len(config.multipliers) - 1:
                self.encoder.append(Level([ResBlock(channels, channels, emb, config.groups, "down", spade)]))
                skips.append(channels)
        return skips

    def _build_decoder(self, emb: int, spade: tuple[int, int] | None, skips: list[int]) -> None:
        config, channels = self.config, skips[-1]
        middle = (
            ResBlock(channels, channels, emb, config.groups, spade=spade),
            Attention(channels, config.head_channels, config.groups),
            ResBlock(channels, channels, emb, config.groups, spade=spade),
        )
        self.middle = Level(middle)
        self.decoder = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for index in range(config.blocks + 1):
                block = Level(
                    [ResBlock(channels + skips.pop(), config.width * multiplier, emb, config.groups, spade=spade)]
                )
                channels = config.width * multiplier
                if 2**level in config.attention:
                    block.append(Attention(channels, config.head_channels, config.groups))
                if level and index == config.blocks:
                    block.append(ResBlock(channels, channels, emb, config.groups, "up", spade=spade))
                self.decoder.append(block)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Predict noise (and variance) of noisy images.

        Args:
            x: float `(b, c, h, w)`, about [-1, 1] plus noise; h and w divisible by 2^(levels - 1).
            t: time steps of the full schedule `(b,)`.
            label: one-hot map `(b, k, h, w)`; all zeros is the null condition.

        Returns:
            float `(b, c, h, w)`, or `(b, 2c, h, w)` with the variance interpolation in the second half.
        """
        emb = self.embedding(t)
        h, skips = self.encode(x, emb, label)
        return self.decode(h, skips, emb, label)

    def embedding(self, t: Tensor) -> Tensor:
        """What the blocks see of time steps `(b,)`: `(b, 4 width)`."""
        return F.silu(self.time(timestep_embedding(t, self.config.width)))

    def encode(self, x: Tensor, emb: Tensor, label: Tensor | Modulations) -> tuple[Tensor, list[Tensor]]:
        """Features of the coarsest level, and those of every block for the decoder."""
        if self.config.conditioning == "concat":
            assert isinstance(label, Tensor)
            x = torch.cat([x, label], dim=1)
        h = self.stem(x)
        skips = [h]
        for block in self.encoder:
            h = self._run(block, emb, label, h)
            skips.append(h)
        return h, skips

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor, label: Tensor | Modulations) -> Tensor:
        """The network's answer from what `encode` gave; empties `skips`, whose memory is then free again."""
        h = self._run(self.middle, emb, label, h)
        for block in self.decoder:
            h = self._run(block, emb, label, h, skips.pop())
        return self.head(F.silu(self.norm(h)))

    def _run(self, block: nn.Module, emb: Tensor, label: Tensor | Modulations, *parts: Tensor) -> Tensor:
        def run(*parts: Tensor) -> Tensor:
            return block(torch.cat(parts, dim=1) if len(parts) == 2 else parts[0], emb, label)

        if not (self.checkpointing and torch.is_grad_enabled()):
            return run(*parts)
        return checkpoint(run, *parts, use_reentrant=False, preserve_rng_state=False)

    def spade_norms(self, size: tuple[int, int]) -> list[tuple[SPADE, tuple[int, int]]]:
        """All SPADE norms in the order of the pass, each with the size `(h, w)` of the features that it sees."""
        found: list[tuple[SPADE, tuple[int, int]]] = []
        for module in (m for m in self.modules() if isinstance(m, ResBlock)):
            resized = module.resized(size)
            for norm, seen in ((module.norm1, size), (module.norm2, resized)):
                if isinstance(norm, SPADE):
                    found.append((norm, seen))
            size = resized
        return found
