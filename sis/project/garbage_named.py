# SPDX-License-Identifier: Apache-2.0
"""Which models and image sets the experiments of this project name: their unfinished work is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sis.config.files import ad_hoc, names
from sis.errors import SisError
from sis.plan import load_plan


@dataclass(frozen=True)
class Named:
    """folders: of artefacts, as models/DATASET/ID, below the root. unread: experiments of which nobody knows."""

    folders: frozenset[str]
    unread: tuple[str, ...] = ()


def named_work() -> Named:
    """The folders of all models and image sets of config/experiments, and of what `sis eval` composed."""
    composed = sorted(path.stem for path in ad_hoc("experiments").glob("*.yaml"))
    folders: set[str] = set()
    unread: list[str] = []
    for name in [*names("experiments"), *composed]:
        try:
            plan = load_plan(experiment=name)
        except SisError:
            unread.append(name)
            continue
        files = [plan.images(s.dataset.name, s.run_id) for s in plan.runs]
        files += [plan.model(s.dataset.name, s.model_id) for s in plan.every if s.model_id]
        folders |= {Path(file).parent.relative_to(plan.root).as_posix() for file in files}
    return Named(frozenset(folders), tuple(unread))
