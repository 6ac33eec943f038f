# SPDX-License-Identifier: Apache-2.0
"""The prior files of SCP-Diff's released code (AIR-DISCOVER/SCP-Diff-Toolkit @859f671) as a prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sis.errors import SisError, first_of
from sis.priors.pickled import read_pickled
from sis.priors.prior import Gaussians, Prior

#: Released files do not say how many tokens are behind a class or a position: taken as enough for any `min_count`.
ENOUGH = 2**31 - 1


def released_prior(categorical: Path, spatial: Path, joint: Path) -> Prior:
    """The prior in the three pickled `.npy` files of the released code, for label ids as its label files hold them.

    They hold {id: {mean, std}} with vectors of c numbers (std with count - 1, NaN for a class drawn once), {mean, std}
    with `(c, h, w)`, and {mean, std, count} with `(256, c, h, w)` and `(256, 1, h, w)`. Counts of the first two are
    not stored and taken as `ENOUGH`; sample with `Policy.released()`.

    Raises SisError when a file is not what it should be; nothing in it is executed.
    """
    of_all = _group(read_pickled(joint), joint, {"mean": 4, "std": 4, "count": 4})
    positions = _group(read_pickled(spatial), spatial, {"mean": 3, "std": 3})
    enough = np.full(positions["mean"].shape[1:], ENOUGH)
    return Prior(
        _gaussians(of_all["count"][:, 0], of_all["mean"], of_all["std"], joint),
        categorical_gaussians(read_pickled(categorical), len(of_all["mean"]), categorical),
        _gaussians(enough[None], positions["mean"][None], positions["std"][None], spatial),
    )


def categorical_gaussians(found: Any, classes: int, where: object = None) -> Gaussians:
    """{id: {mean, std}} as a categorical prior; a deviation that is not a number means that a class was drawn once."""
    if not isinstance(found, Mapping) or not found:
        raise SisError("no categorical prior of the released code: not {id: {mean, std}}", where=where)
    odd = [k for k in found if not isinstance(k, int) or not 0 <= k < classes]
    if odd:
        raise SisError(f"class ids outside 0..{classes - 1}: {first_of(odd)}", where=where)
    rows = {k: _group(v, where, {"mean": 1, "std": 1}) for k, v in found.items()}
    channels = next(iter(rows.values()))["mean"].size
    if any(row[name].size != channels for row in rows.values() for name in row):
        raise SisError("class statistics of different lengths", where=where)
    count, mean, std = np.zeros(classes, np.int64), np.zeros((classes, channels)), np.zeros((classes, channels))
    for class_id, row in rows.items():
        spread = bool(np.isfinite(row["std"]).all())
        count[class_id], mean[class_id], std[class_id] = ENOUGH if spread else 1, row["mean"], row["std"]
        if not spread:
            std[class_id] = 0
    return _gaussians(count[:, None, None], mean[..., None, None], std[..., None, None], where)


def _gaussians(count: NDArray, mean: NDArray, std: NDArray, where: object) -> Gaussians:
    """Cells whose numbers are not finite count as never seen."""
    if mean.shape != std.shape or count.shape != (mean.shape[0], *mean.shape[2:]):
        raise SisError(f"shapes do not fit together: {count.shape}, {mean.shape}, {std.shape}", where=where)
    known = np.all(np.isfinite(mean) & np.isfinite(std), axis=1)
    numbers = [torch.from_numpy(np.where(known[:, None], a, 0).astype(np.float32)) for a in (mean, std)]
    return Gaussians(torch.from_numpy(np.where(known, count, 0).astype(np.int64)), *numbers)


def _group(found: Any, where: object, axes: Mapping[str, int]) -> dict[str, NDArray]:
    """The arrays of one group, each with its number of axes."""
    fits = isinstance(found, Mapping) and all(
        isinstance(found.get(name), np.ndarray) and found[name].ndim == count for name, count in axes.items()
    )
    if not fits:
        raise SisError(f"no prior of the released code: it must hold arrays {first_of(axes)}", where=where)
    return {name: found[name] for name in axes}
