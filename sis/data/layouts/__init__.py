# SPDX-License-Identifier: Apache-2.0
"""Layouts: how a dataset lies on disk. One module a layout, found by its name.

A layout has two functions: `entries(card, split, root)` lists a split, sorted by id, without opening a picture;
`read(card, entry)` reads one pair at its raw size, label values already turned into ids.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from sis.config.cards import DatasetCard
from sis.errors import SisError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One pair before it is read: its id, its raw files by what they hold, its style reference."""

    image_id: str
    split: str
    files: dict[str, Path] = field(default_factory=dict)
    reference_id: str = ""


def layout_module(card: DatasetCard) -> ModuleType:
    """The module that reads the card's files."""
    known = [p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__"]
    if card.layout not in known:
        raise SisError(f"unknown layout {card.layout!r} of dataset {card.name}", fix=did_you_mean(card.layout, known))
    return importlib.import_module(f"sis.data.layouts.{card.layout}")


def checked_options(card: DatasetCard, known: dict[str, type]) -> None:
    """Raise SisError for an option that the layout does not know, and for one of another type."""
    for name, value in card.options.items():
        if name not in known:
            fix = did_you_mean(name, known)
            raise SisError(f"unknown option {name!r} of layout {card.layout}", where=card.name, fix=fix)
        if type(value) is not known[name]:
            raise SisError(f"option {name} must be of type {known[name].__name__}, found {value!r}", where=card.name)
