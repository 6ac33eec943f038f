# SPDX-License-Identifier: Apache-2.0
"""What `sis doctor` says about one thing: good, worth knowing, or in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. fix: what to do about it, empty where nothing is to be done."""

    level: Level
    text: str
    fix: str = ""

    def line(self) -> str:
        """The finding as one line: level, text, what to do."""
        words = [self.text, *(["-", self.fix] if self.fix else [])]
        return f"{self.level:<5}" + " ".join(" ".join(words).split())


def ok(text: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", text)


def note(text: str, fix: str = "") -> Finding:
    """Works, with a consequence that one should know."""
    return Finding("note", text, fix)


def bad(text: str, fix: str) -> Finding:
    """Work would be refused, hang or be lost."""
    return Finding("bad", text, fix)
