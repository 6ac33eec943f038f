# SPDX-License-Identifier: Apache-2.0
"""Compares the names and shapes of foreign weights with those that a network needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sis.errors import SisError, first_of


def refuse_differences(
    found: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    where: Path | None = None,
    fix: str = "`sis checkpoint inspect` shows the network that it fits",
) -> None:
    """Raise SisError that lists missing names, unexpected names and differing shapes: five of each and their counts.

    needed: weights under the same (upstream) names; their values do not matter, so they may lie on the meta device.
    """
    missing = [name for name in needed if name not in found]
    unexpected = [name for name in found if name not in needed]
    shapes = [
        f"{name} is {tuple(found[name].shape)} and should be {tuple(value.shape)}"
        for name, value in needed.items()
        if name in found and found[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    faults = [f"{len(names)} {kind}: {first_of(names)}" for kind, names in kinds if names]
    if faults:
        what = f"the checkpoint does not fit the network; {'; '.join(faults)}"
        raise SisError(what, where=where, fix=fix)
