# SPDX-License-Identifier: Apache-2.0
"""SDM's U-Net as samplers need it: one batch of label maps, many steps, both guidance branches in one pass.

The same network and the same mathematics as `SDMUNet`, without work that repeats:

- scales and shifts of SPADE come from stores that were filled once (`sis.nets.modulation`);
- layers that have not met the label map yet run once for both branches; the rest runs them as one batch;
- a nearest doubling before a 3x3 convolution is a transposed 4x4 convolution with stride 2: the same sums with 16
  instead of 36 products, because neighbouring taps read the same pixel;
- scale and shift of time join the affine part of the norms;
- features keep their channels last in memory, so attention and table look-ups need no transposition.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sis.errors import SisError
from sis.nets.modulation import LabelMaps, NullMaps
from sis.nets.sdm_unet import Attention, Level, ResBlock, SDMUNet
from sis.nets.spade import SPADE, AffineNorm

_LAST = torch.channels_last


class Branches(NamedTuple):
    """Maps of the conditional branch (the first `rows` images of a batch) and of the null branch, if there is one."""

    rows: int
    maps: LabelMaps
    null: NullMaps | None


class _Conv:
    """A convolution with weights in the working type."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        self.weight, self.bias = _weights(conv, conv.weight, dtype)
        self.padding = conv.padding

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.shape[2:] == (1, 1):  # channels last: a matrix product as it stands
            return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)  # type: ignore[arg-type]


class _DoublingConv:
    """A nearest doubling and the 3x3 convolution after it, in one."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        # A tap of the 3x3 kernel meets every coarse pixel at two fine positions in each direction: sums of shifts.
        taps = conv.weight.new_zeros(conv.in_channels, conv.out_channels, 4, 4)
        turned = conv.weight.flip(2, 3).transpose(0, 1)
        for down, right in product((0, 1), repeat=2):
            taps[:, :, down : down + 3, right : right + 3] += turned
        self.weight, self.bias = _weights(conv, taps, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


def _weights(conv: nn.Conv2d, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype, memory_format=_LAST), None if conv.bias is None else conv.bias.to(dtype)


def group_norm(x: Tensor, norm: nn.GroupNorm, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Group norm of channels-last features in float32, with these weights `(c,)` instead of its own."""
    if not x.is_cuda:
        return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps)
    return channels_last_group_norm(x, norm, weight, bias)


def channels_last_group_norm(x: Tensor, norm: nn.GroupNorm, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`group_norm` for CUDA, whose own kernel answers channels first: every convolution would turn that round again."""
    b, c, h, w = x.shape
    parts = x.float().permute(0, 2, 3, 1).reshape(b, h * w, norm.num_groups, c // norm.num_groups)
    variance, mean = torch.var_mean(parts, dim=(1, 3), correction=0, keepdim=True)
    normal = ((parts - mean) * (variance + norm.eps).rsqrt()).reshape(b, h, w, c)
    if weight is not None and bias is not None:
        normal = torch.addcmul(bias, normal, weight)
    return normal.permute(0, 3, 1, 2)


def _modulate(h: Tensor, gain: Tensor, offset: Tensor) -> None:
    """h * gain + offset, in place and in one pass over memory."""
    if torch.compiler.is_compiling():  # which makes one pass of these two, but cannot trace the other
        h.mul_(gain).add_(offset)
    else:
        torch.addcmul(offset, h, gain, out=h)


class _Affine:
    """Group norm and SiLU; a time embedding's scale and shift become part of the norm's own."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm

    def __call__(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        weight, bias = self.norm.weight, self.norm.bias
        if scale is not None and shift is not None:
            weight, bias = weight * scale, torch.addcmul(shift, bias, scale)
        h = group_norm(x, self.norm, weight, bias)
        return F.silu(h, inplace=True).to(x.dtype)


class _Modulated:
    """SPADE and SiLU on both branches; what comes in shared goes out as two."""

    def __init__(self, spade: SPADE, branches: Branches) -> None:
        self.spade, self.branches = spade, branches

    def __call__(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        rows, maps, null = self.branches
        h = group_norm(x, self.spade.norm)
        if null is not None and len(h) == rows:
            h = torch.cat([h, h])
        gain, offset = maps.of(self.spade)
        _modulate(h[:rows], gain, offset)
        if null is not None:
            for band, gain, offset in null.of(self.spade):
                _modulate(h[rows:, :, band], gain, offset)
        if scale is not None and shift is not None:
            _modulate(h, scale[:, None, None], shift[:, None, None])
        return F.silu(h, inplace=True).to(x.dtype)


class _Block:
    """A residual block."""

    def __init__(self, block: ResBlock, branches: Branches, dtype: torch.dtype) -> None:
        def normed(norm: nn.Module) -> _Affine | _Modulated:
            if isinstance(norm, SPADE):
                return _Modulated(norm, branches)
            assert isinstance(norm, AffineNorm)
            return _Affine(norm.norm)

        self.norm1, self.norm2, self.embed = normed(block.norm1), normed(block.norm2), block.embed
        self.resample = block.resample
        self.conv1 = _DoublingConv(block.conv1, dtype) if block.resample == "up" else _Conv(block.conv1, dtype)
        self.conv2 = _Conv(block.conv2, dtype)
        self.skip = _Conv(block.skip, dtype) if isinstance(block.skip, nn.Conv2d) else None

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.embed(emb).chunk(2)
        h = self.norm1(x)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv1(h)
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        h = self.conv2(self.norm2(h, 1 + scale, shift))
        x = x if self.skip is None else self.skip(x)
        if len(x) != len(h):
            x = torch.cat([x, x])
        return h.add_(x)


class _Attend:
    """Self-attention; channels last make queries, keys and values plain views."""

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        self.heads, self.norm = attention.heads, attention.norm
        self.qkv, self.out = _Conv(attention.qkv, dtype), _Conv(attention.out, dtype)

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = group_norm(x, self.norm, self.norm.weight, self.norm.bias).to(x.dtype)
        qkv = self.qkv(normed).permute(0, 2, 3, 1).reshape(b, h * w, self.heads, 3, c // self.heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(attended.reshape(b, h, w, c).permute(0, 3, 1, 2)).add_(x)


class SamplingUNet:
    """`SDMUNet` under one batch of label maps and, where wanted, its null condition beside it."""

    def __init__(
        self,
        unet: SDMUNet,
        label: Tensor,
        size: tuple[int, int],
        null: bool,
        budget: int | None = None,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        """Fill the stores.

        Args:
            unet: the network; its weights must not change afterwards.
            label: condition `(b, k, H, W)`.
            size: height and width of the noisy images.
            null: whether the null branch is wanted too.
            budget: bytes for the kept maps, None for no limit.
            dtype: of convolutions and kept maps; norms are float32 throughout.
            compiled: let torch.compile fuse the pass.
        """
        self.unet, self.dtype, norms = unet, dtype, unet.spade_norms(size)
        label = label.contiguous(memory_format=_LAST)
        maps = LabelMaps(norms, label, budget, dtype=dtype)
        self.branches = Branches(len(label), maps, NullMaps(norms, label, dtype) if null else None)
        self.stem, self.offset = self._stem(label)
        self.encoder = [self._level(level) for level in unet.encoder]
        self.middle = self._level(unet.middle)
        self.decoder = [self._level(level) for level in unet.decoder]
        self.norm, self.head = _Affine(unet.norm), _Conv(unet.head, dtype)
        self.run: Callable[[Tensor, Tensor], Tensor] = self._forward
        if compiled:
            self.run = torch.compile(self._forward, dynamic=False, fullgraph=True)

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs of both branches, each as `SDMUNet` gives it, float32; the second is None without a null branch.

        x: `(b, c, h, w)`; t: `(b,)`, the same step for the whole batch. Raises SisError for steps that differ.
        """
        if t.device.type != "meta" and len(set(t.tolist())) > 1:
            raise SisError("the images of a batch are at different time steps", fix="sample without reuse")
        out = self.run(x, t[:1])
        rows = self.branches.rows
        return (out[:rows], out[rows:]) if self.branches.null is not None else (out, None)

    def _forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.unet.embedding(t)[0]
        h = self.stem(x.to(self.dtype).contiguous(memory_format=_LAST))
        if self.offset is not None:
            h = torch.cat([h + self.offset, h]) if self.branches.null is not None else h + self.offset
        skips = [h]
        for level in self.encoder:
            for module in level:
                h = module(h, emb)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for level in self.decoder:
            skip = skips.pop()
            h = torch.cat([h, skip if len(skip) == len(h) else torch.cat([skip, skip])], dim=1)
            for module in level:
                h = module(h, emb)
        return self.head(self.norm(h)).float()

    def _level(self, level: nn.Module) -> list[_Block | _Attend]:
        assert isinstance(level, Level)
        return [
            _Block(module, self.branches, self.dtype) if isinstance(module, ResBlock) else _Attend(module, self.dtype)
            for module in level
            if isinstance(module, ResBlock | Attention)
        ]

    def _stem(self, label: Tensor) -> tuple[_Conv, Tensor | None]:
        """The first convolution; under `concat` the label channels' share of it, which is the same at every step."""
        stem = _Conv(self.unet.stem, self.dtype)
        if self.unet.config.conditioning != "concat":
            return stem, None
        pixels = stem.weight.shape[1] - label.shape[1]
        share = F.conv2d(label.to(self.dtype), stem.weight[:, pixels:], padding=stem.padding)  # type: ignore[arg-type]
        stem.weight = stem.weight[:, :pixels]
        return stem, share
