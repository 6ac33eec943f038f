# SPDX-License-Identifier: Apache-2.0
"""Keyed noise: the same float32 bits for (seed, image, sample, purpose, step) on any device, shard or batch position.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives 32 random bits for every
element from a key and a counter. Normal numbers follow by the inverse of the error function (Giles, "Approximating
the erfinv function", 2010), written with additions, multiplications, square roots and integer operations only: IEEE
754 rounds those the same everywhere, which the `log` and `cos` of different mathematical libraries are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Coefficients of Giles' single-precision approximation, highest power first.
_CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
            -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_TAIL = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
         0.00943887047, 1.00167406, 2.83297682)  # fmt: skip
_SQRT2 = 1.4142135623730951
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Noise:
    """The noise of a batch: one stream for each (image id, sample index), owned by the harness.

    A method asks for what it needs by purpose and step; it never draws numbers of its own.
    """

    seed: int
    keys: tuple[tuple[str, int], ...]
    device: torch.device | str = "cpu"

    def normal(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 `(b, *shape)` for this purpose and step."""
        return _erfinv_normal(self.bits(purpose, step, shape))

    def uniform(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        """Uniform float32 in [0, 1), `(b, *shape)`, with 24 random bits."""
        return (self.bits(purpose, step, shape) >> 8).to(torch.float32) * 2.0**-24

    def integers(self, purpose: str, step: int, shape: Sequence[int], high: int) -> Tensor:
        """Uniform int64 in [0, high), `(b, *shape)`; high is at most 2^31 (bias below high / 2^32)."""
        return (self.bits(purpose, step, shape) * high) >> 32

    def bits(self, purpose: str, step: int, shape: Sequence[int]) -> Tensor:
        """32 random bits for each element, int64 `(b, *shape)` in [0, 2^32)."""
        count = 1
        for side in shape:
            count *= side
        words = [_key(self.seed, image_id, sample, purpose) for image_id, sample in self.keys]
        key = torch.tensor(words, dtype=torch.int64, device=self.device)
        blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=self.device)
        random = philox(key, blocks, step)
        return random.flatten(1)[:, :count].reshape(len(self.keys), *shape)


def philox(key: Tensor, blocks: Tensor, step: int) -> Tensor:
    """Philox 4x32-10 of the counters (block, step, 0, 0) under each key.

    Args:
        key: int64 `(b, 2)`, two 32-bit words a stream.
        blocks: int64 `(n,)` in [0, 2^32).
        step: second counter word.

    Returns:
        int64 `(b, n, 4)` with 32 random bits each.
    """
    batch = (key.shape[0], blocks.shape[0])
    c0 = blocks.expand(batch)
    c1 = torch.full_like(c0, step & _MASK)
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    return philox_rounds([c0, c1, c2, c3], key[:, :1], key[:, 1:])


def philox_rounds(counter: list[Tensor], k0: Tensor, k1: Tensor) -> Tensor:
    """The ten rounds on four counter words and two key words (int64 tensors holding 32-bit values)."""
    c0, c1, c2, c3 = counter
    for turn in range(_ROUNDS):
        if turn:
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
        # A 64-bit product wraps into the sign bit; shifting and masking still yields the true high word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _key(seed: int, image_id: str, sample: int, purpose: str) -> tuple[int, int]:
    text = f"{seed}\x1f{image_id}\x1f{sample}\x1f{purpose}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _erfinv_normal(bits: Tensor) -> Tensor:
    """Normal numbers from 32 random bits: the top bit is the sign, the other 31 the distance from the tail's end."""
    sign = 1.0 - 2.0 * (bits >> 31).to(torch.float32)
    tail = ((bits & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2.0**-31  # 1 - x, in (0, 1]: exact near the tail
    w = -_log(tail * (2.0 - tail))  # -log((1 - x)(1 + x))
    central = _horner(_CENTRAL, w - 2.5)
    far = _horner(_TAIL, torch.sqrt(torch.clamp(w, min=5.0)) - 3.0)
    return sign * (1.0 - tail) * torch.where(w < 5.0, central, far) * _SQRT2


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive float32 numbers from IEEE-exact operations only (error below 2e-7)."""
    raw = x.view(torch.int32)
    exponent = (raw - 0x3F3504F3) >> 23  # makes the mantissa lie in [sqrt(1/2), sqrt(2))
    f = (raw - (exponent << 23)).view(torch.float32) - 1.0
    # log(1 + f) as f - f^2/2 + f^3 P(f), a minimax polynomial in Horner form.
    p = _horner((7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                 -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1), f)  # fmt: skip
    square = f * f
    return exponent.to(torch.float32) * _LN2 + (f + (square * (f * p) - square * 0.5))


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    # Multiplication and addition stay two separate roundings: a fused one would differ between devices.
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x
        value = value + coefficient
    return value
