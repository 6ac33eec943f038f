# SPDX-License-Identifier: Apache-2.0
"""The Inception network of FID: the one that Heusel et al. (2017) judged with, in pytorch-fid's weight names.

It is Inception v3 of Szegedy et al. (2016) with the peculiarities of the TensorFlow graph of 2015-12-05: average
pooling does not count the padding, the last block pools by maximum, batch norm has eps 1e-3, and there are 1008 classes
(that layer takes no part in features and is left out). Names are those of `pt_inception-2015-12-05-6726825d.pth`
(github.com/mseitzer/pytorch-fid, release fid_weights).

Poolings are moved to where they are cheap: a maximum commutes with the ReLU, and an average that leaves the padding out
commutes with a 1x1 convolution and its batch norm, so both see fewer numbers than the published order has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

#: Names in the published file that features do not need.
UNUSED = ("fc.weight", "fc.bias")
#: Lengths of the features: after the first and the second max-pool, before the third reduction, at the end.
DIMS = (64, 192, 768, 2048)
#: Side of the images that the network was trained on, in pixels.
SIDE = 299
#: Images that go through the stem together on a CPU: its widest maps stay near the processor, and below the 32 MiB from
#: which the C library fetches fresh pages for every tensor.
_STEM_TOGETHER = 4


@dataclass(frozen=True)
class Unit:
    """Name, output channels, kernel `(h, w)` and stride of a convolution unit."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


#: Units one after the other; those of an inner tuple stand side by side and their outputs are put together.
Path = Sequence[Unit | tuple[Unit, Unit]]


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU; after `fold` a convolution with bias and ReLU."""

    def __init__(self, inputs: int, unit: Unit, padding: tuple[int, int]) -> None:
        super().__init__()
        self._stride, self._padding = (unit.stride, unit.stride), padding
        self.conv = nn.Conv2d(inputs, unit.outputs, unit.kernel, unit.stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(unit.outputs, eps=1e-3)

    def forward(self, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`pool` comes before the ReLU."""
        x = self.bn(self._convolved(x))
        return F.relu(x if pool is None else pool(x), inplace=True)

    def _convolved(self, x: Tensor) -> Tensor:
        """F.conv2d, but always by oneDNN on a CPU: torch takes a slower way for 1x1 kernels and less than 16 images."""
        if isinstance(self.bn, nn.Identity) and x.is_cpu and torch.backends.mkldnn.is_available():
            weight, bias = self.conv.weight, self.conv.bias
            return torch.mkldnn_convolution(x, weight, bias, self._padding, self._stride, (1, 1), 1)
        return self.conv(x)

    def fold(self) -> None:
        """Move the batch norm into the convolution and lay its kernels out channels last; only for inference."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)
            self.bn = nn.Identity()


class Block(nn.Module):
    """Paths side by side over one input, their outputs put together; the last path is the pooling and `branch_pool`.

    Units of stride 1 keep the size. pool: "average" or "max" keeps it, "reduce" is a max-pool that halves it, alone.
    """

    def __init__(self, inputs: int, paths: Sequence[Path], pool: str) -> None:
        super().__init__()
        self.paths, self.pool, self.outputs = paths, pool, 0
        for path in paths:
            width = inputs
            for step in path:
                width = sum(self._add(unit, width) for unit in _side_by_side(step))
            self.outputs += width

    def _add(self, unit: Unit, inputs: int) -> int:
        h, w = unit.kernel
        padding = (h // 2, w // 2) if unit.stride == 1 else (0, 0)
        self.add_module(unit.name, ConvUnit(inputs, unit, padding))
        return unit.outputs

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for path in self.paths[:-1]:
            y = x
            for step in path:
                found = [self.get_submodule(unit.name)(y) for unit in _side_by_side(step)]
                y = torch.cat(found, 1) if len(found) > 1 else found[0]
            out.append(y)
        return torch.cat([*out, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        """The last path."""
        if self.pool == "reduce":
            return _halved(x)
        unit = self.get_submodule("branch_pool")
        return unit(x, _average) if self.pool == "average" else unit(F.max_pool2d(x, 3, 1, 1))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def _side_by_side(step: Unit | tuple[Unit, Unit]) -> Sequence[Unit]:
    return step if isinstance(step, tuple) else (step,)


def _block_a(pooled: int) -> Sequence[Path]:
    """Figure 5 of Szegedy et al. (2016): 35x35 cells, with a 5x5 kernel in place of one of the pairs."""
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3))),
        (Unit("branch_pool", pooled),),
    )


def _block_c(width: int) -> Sequence[Path]:
    """Figure 6: 17x17 cells, 7x7 kernels as rows and columns."""
    w = width
    row, column = (1, 7), (7, 1)
    double = [Unit(f"branch7x7dbl_{i}", w, column if i % 2 == 0 else row) for i in (2, 3, 4)]
    return (
        (Unit("branch1x1", 192),),
        (Unit("branch7x7_1", w), Unit("branch7x7_2", w, row), Unit("branch7x7_3", 192, column)),
        (Unit("branch7x7dbl_1", w), *double, Unit("branch7x7dbl_5", 192, row)),
        (Unit("branch_pool", 192),),
    )


def _block_e() -> Sequence[Path]:
    """Figure 7: 8x8 cells, rows and columns side by side."""

    def fork(name: str) -> tuple[Unit, Unit]:
        return Unit(f"{name}a", 384, (1, 3)), Unit(f"{name}b", 384, (3, 1))

    return (
        (Unit("branch1x1", 320),),
        (Unit("branch3x3_1", 384), fork("branch3x3_2")),
        (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")),
        (Unit("branch_pool", 192),),
    )


_REDUCE_B = (
    (Unit("branch3x3", 384, (3, 3), 2),),
    (Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, (3, 3)), Unit("branch3x3dbl_3", 96, (3, 3), 2)),
    (),
)
_REDUCE_D = (
    (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), 2)),
    (
        Unit("branch7x7x3_1", 192),
        Unit("branch7x7x3_2", 192, (1, 7)),
        Unit("branch7x7x3_3", 192, (7, 1)),
        Unit("branch7x7x3_4", 192, (3, 3), 2),
    ),
    (),
)
#: Units before the blocks, with their padding; a max-pool of 3x3 that halves the size follows 64 and 192 channels.
_STEM = (
    (Unit("Conv2d_1a_3x3", 32, (3, 3), 2), 0),
    (Unit("Conv2d_2a_3x3", 32, (3, 3)), 0),
    (Unit("Conv2d_2b_3x3", 64, (3, 3)), 1),
    (Unit("Conv2d_3b_1x1", 80), 0),
    (Unit("Conv2d_4a_3x3", 192, (3, 3)), 0),
)
#: Blocks behind the stem: name, paths, pooling.
_BLOCKS = (
    ("Mixed_5b", _block_a(32), "average"),
    ("Mixed_5c", _block_a(64), "average"),
    ("Mixed_5d", _block_a(64), "average"),
    ("Mixed_6a", _REDUCE_B, "reduce"),
    ("Mixed_6b", _block_c(128), "average"),
    ("Mixed_6c", _block_c(160), "average"),
    ("Mixed_6d", _block_c(160), "average"),
    ("Mixed_6e", _block_c(192), "average"),
    ("Mixed_7a", _REDUCE_D, "reduce"),
    ("Mixed_7b", _block_e(), "average"),
    ("Mixed_7c", _block_e(), "max"),
)


class Inception(nn.Module):
    """Images `(b, 3, 299, 299)` in about [-1, 1] in, feature vectors out."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for unit, padding in _STEM:
            self.add_module(unit.name, ConvUnit(width, unit, (padding, padding)))
            width = unit.outputs
        for name, paths, pool in _BLOCKS:
            block = Block(width, paths, pool)
            self.add_module(name, block)
            width = block.outputs

    def maps(self, x: Tensor, dims: int = 2048) -> Tensor:
        """Feature maps `(b, dims, h, w)` whose means over the picture are the features."""
        x = torch.cat([self._stem(part, dims) for part in x.split(_STEM_TOGETHER if x.is_cpu else max(1, len(x)))])
        for name, _, _ in _BLOCKS if dims > 192 else ():
            if dims == 768 and name == "Mixed_7a":
                break
            x = self.get_submodule(name)(x)
        return x

    def _stem(self, x: Tensor, dims: int) -> Tensor:
        for unit, _ in _STEM:
            x = self.get_submodule(unit.name)(x, _halved if unit.outputs in (64, 192) else None)
            if unit.outputs == dims:
                break
        return x

    def forward(self, x: Tensor, dims: int = 2048) -> Tensor:
        """Features `(b, dims)`, dims one of DIMS."""
        return self.maps(x, dims).mean((2, 3))

    def fold(self) -> Inception:
        """Make it fast for inference: batch norms into convolutions, channels last in memory. Returns itself."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvUnit):
                module.fold()
        return self
