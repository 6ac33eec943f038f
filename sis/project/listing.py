# SPDX-License-Identifier: Apache-2.0
"""`sis list`: what there is, found by file name."""

from __future__ import annotations

from sis.config.files import dataset_card, experiment, named, project_root
from sis.config.protocols import ProtocolCard
from sis.errors import SisError
from sis.methods.discovery import methods


def listing(what: str | None = None) -> str:
    """Aligned lines of all plug-ins and configuration files, or of one kind of them."""
    kinds = {"methods": _methods, "datasets": _datasets, "experiments": _experiments, "protocols": _protocols}
    chosen = {what: kinds[what]} if what else kinds
    return "\n\n".join(f"{title}\n" + "\n".join(_aligned(rows())) for title, rows in chosen.items())


def _methods() -> list[tuple[str, ...]]:
    return [(m.name, m.kind, m.role, m.title) for m in methods().values()]


def _datasets() -> list[tuple[str, ...]]:
    rows = []
    for name in _stems("datasets"):
        card = dataset_card(name)
        counts = ", ".join(f"{k} {v.count:,}" for k, v in card.splits.items())
        release = " (release)" if card.prepare.fidelity == "release" else ""
        rows.append((name, f"{card.size[0]}x{card.size[1]}", counts, card.prepare.policy + release, card.shown))
    return rows


def _experiments() -> list[tuple[str, ...]]:
    found = [(name, experiment(name)) for name in _stems("experiments")]
    return [(name, f"{len(e.runs)} runs", ", ".join(e.datasets), e.title) for name, e in found]


def _protocols() -> list[tuple[str, ...]]:
    found = [(name, named("protocols", name, ProtocolCard)) for name in _stems("protocols")]
    return [(name, p.dataset, ", ".join(entry.stem for entry in p.entries()), p.title) for name, p in found]


def _stems(kind: str) -> list[str]:
    return sorted(p.stem for p in (project_root() / "config" / kind).glob("*.yaml"))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        raise SisError("nothing found", where=project_root())
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
