# SPDX-License-Identifier: Apache-2.0
"""SCP-Diff's priors, assembled token by token for label maps.

Values are selected, never blended by masks: a class without statistics cannot spoil the rest of a map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

import torch
from torch import Tensor

from sis.errors import SisError, did_you_mean
from sis.priors.accumulator import Accumulator
from sis.priors.params import Kind, Policy
from sis.priors.statistics import Statistics

#: Where a token's values come from, in the order of the numbers that stand for them.
SOURCES = ("joint", "class", "spatial", "normal")
_JOINT, _CLASS, _SPATIAL = 0, 1, 2


@dataclass(frozen=True)
class Gaussians:
    """A diagonal Gaussian for each (class, position).

    count: int64 `(k, h, w)`, tokens behind each; mean and std (divided by the count): float32 `(k, c, h, w)`. A
    categorical prior has h = w = 1, a spatial one k = 1.
    """

    count: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, moments: Accumulator) -> Gaussians:
        """What an accumulator has seen."""
        count = torch.from_numpy(moments.count.copy())
        mean, variance = torch.from_numpy(moments.mean), torch.from_numpy(moments.variance())
        return cls(count, mean.float().contiguous(), variance.sqrt().float().contiguous())

    def at(self, labels: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count `(b, h, w)`, mean and variance `(b, c, h, w)` at label maps `(b, h, w)`; variance 0 if undefined."""
        _, h, w = labels.shape
        k, height, width = self.count.shape
        ids = labels if k > 1 else torch.zeros_like(labels)
        rows = torch.arange(h, device=labels.device)[:, None] if height > 1 else 0 * labels
        columns = torch.arange(w, device=labels.device) if width > 1 else 0 * labels
        count = self.count[ids, rows, columns]
        mean, std = (a.movedim(1, -1)[ids, rows, columns].movedim(-1, 1) for a in (self.mean, self.std))
        variance = std * std
        if ddof:
            variance = variance * (count / (count - ddof).clamp(min=1))[:, None].to(variance)
        return count, mean, variance


@dataclass(frozen=True)
class Prior:
    """All priors of a training set. Raises SisError when it was computed from nothing or its parts do not fit."""

    joint: Gaussians
    categorical: Gaussians
    spatial: Gaussians

    def __post_init__(self) -> None:
        k, c, h, w = self.joint.mean.shape
        shapes = {"joint": (k, c, h, w), "categorical": (k, c, 1, 1), "spatial": (1, c, h, w)}
        for name, shape in shapes.items():
            part: Gaussians = getattr(self, name)
            right = tuple(part.mean.shape) == tuple(part.std.shape) == shape
            if not right or tuple(part.count.shape) != (shape[0], *shape[2:]):
                raise SisError(f"the {name} prior has shape {tuple(part.mean.shape)}, it must have {shape}")
            if not (torch.isfinite(part.mean).all() and torch.isfinite(part.std).all()):
                raise SisError(f"the {name} prior is not finite")
        if not bool((self.spatial.count > 0).all()):
            raise SisError("the prior was computed from no images")

    @classmethod
    def of(cls, statistics: Statistics) -> Prior:
        """The priors that follow from the statistics."""
        parts = (statistics.joint, statistics.categorical, statistics.spatial)
        return cls(*(Gaussians.of(part) for part in parts))

    @property
    def classes(self) -> int:
        """Label ids are 0..classes-1."""
        return self.joint.mean.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        _, c, h, w = self.joint.mean.shape
        return c, h, w

    def to(self, device: torch.device | str) -> Prior:
        """The same on a device."""
        parts = [getattr(self, f.name) for f in fields(self)]
        return Prior(*(Gaussians(p.count.to(device), p.mean.to(device), p.std.to(device)) for p in parts))

    def maps(self, labels: Tensor, kind: Kind, policy: Policy | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the prior for label maps.

        Args:
            labels: int64 `(b, h, w)` at the latents' resolution (`labels.latent_labels`).
            kind: which prior.
            policy: how it is assembled; None: as in the paper.

        Returns:
            float32 `(b, c, h, w)` each, always finite. Raises SisError for other sizes and ids out of range.
        """
        policy = policy or Policy()
        mean, variance, _ = self._assembled(labels, kind, policy)
        return mean, variance.sqrt() * policy.temperature

    def assigned_share(self, labels: Tensor, kind: Kind, policy: Policy | None = None) -> dict[str, float]:
        """The share of tokens that get their values from each of `SOURCES`; they sum to 1."""
        source = self._assembled(labels, kind, policy or Policy())[2].flatten()
        counted = torch.bincount(source, minlength=len(SOURCES)).tolist()
        return {name: n / max(1, len(source)) for name, n in zip(SOURCES, counted, strict=True)}

    def counts(self, labels: Tensor) -> Tensor:
        """Training tokens with each token's own class and position, int64 `(b, h, w)`."""
        return self.joint.at(self._checked(labels), 0)[0]

    def _assembled(self, labels: Tensor, kind: Kind, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance `(b, c, h, w)` and the number of the source `(b, h, w)`."""
        if kind not in get_args(Kind):
            raise SisError(f"unknown prior {kind!r}", fix=did_you_mean(str(kind), get_args(Kind)))
        labels = self._checked(labels)
        if kind == "normal":
            nothing = self.joint.mean.new_zeros((len(labels), *self.shape))
            return nothing, nothing + 1, torch.full_like(labels, SOURCES.index("normal"))
        spatial = self._spatial(labels, policy)
        if kind == "spatial":
            return spatial
        of_class = self._of_class(labels, policy, spatial)
        if kind == "categorical":
            return of_class
        return _summed(spatial, of_class, policy) if kind == "spatial_class" else self._joint(
            labels, policy, of_class, spatial if policy.fallback == "spatial" else of_class
        )  # fmt: skip

    def _spatial(self, labels: Tensor, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        _, mean, variance = self.spatial.at(labels, policy.ddof)
        return mean, variance, torch.full_like(labels, _SPATIAL)

    def _of_class(
        self, labels: Tensor, policy: Policy, spatial: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The categorical prior, or the spatial one where the class was seen too rarely."""
        least = max(policy.min_count, policy.class_ddof + 1)
        if policy.unknown is not None:
            if policy.unknown >= self.classes:
                raise SisError(
                    f"class {policy.unknown} cannot stand for unknown ones: the prior has {self.classes} classes",
                    fix="name void's channel, or leave `unknown` empty",
                )
            rare = self.categorical.count[labels, 0, 0] < least
            labels = torch.where(rare, policy.unknown, labels)
        count, mean, variance = self.categorical.at(labels, policy.class_ddof)
        return _chosen(count >= least, (mean, variance, torch.full_like(labels, _CLASS)), spatial)

    def _joint(
        self, labels: Tensor, policy: Policy,
        of_class: tuple[Tensor, Tensor, Tensor], fallback: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        count, mean, variance = self.joint.at(labels, policy.ddof)
        if policy.shrinkage:
            own = (count / (count + policy.shrinkage))[:, None].to(mean)
            mean, variance = own * mean + (1 - own) * of_class[0], own * variance + (1 - own) * of_class[1]
        enough = count >= max(policy.min_count, policy.ddof + 1)
        return _chosen(enough, (mean, variance, torch.full_like(labels, _JOINT)), fallback)

    def _checked(self, labels: Tensor) -> Tensor:
        _, h, w = self.shape
        if labels.ndim != 3 or tuple(labels.shape[1:]) != (h, w):
            raise SisError(
                f"label maps of shape {tuple(labels.shape)} for a prior of {h}x{w} positions",
                fix="scale them down to the latents' resolution",
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise SisError(f"label ids {int(labels.min())}..{int(labels.max())}, the prior has {self.classes} classes")
        return labels.to(self.joint.mean.device, torch.int64)


def draw(mean: Tensor, std: Tensor, eps: Tensor) -> Tensor:
    """x_prior ~ N(mean, std^2) with the standard normal `eps` `(b, c, h, w)` (before Eq. 6); all broadcast."""
    return mean + std * eps


def _chosen(
    first: Tensor, one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`one` where `first` `(b, h, w)` holds, else `other`."""
    wide = first[:, None]
    return (
        torch.where(wide, one[0], other[0]),
        torch.where(wide, one[1], other[1]),
        torch.where(first, one[2], other[2]),
    )


def _summed(
    spatial: tuple[Tensor, Tensor, Tensor], of_class: tuple[Tensor, Tensor, Tensor], policy: Policy
) -> tuple[Tensor, Tensor, Tensor]:
    """The released `spatial-class` prior: the means' weighted sum, which is not divided by the weights."""
    a, b = policy.spatial_weight, policy.class_weight
    mean = a * spatial[0] + b * of_class[0]
    around = a * (spatial[1] + (spatial[0] - mean) ** 2) + b * (of_class[1] + (of_class[0] - mean) ** 2)
    return mean, around / (a + b), of_class[2]
