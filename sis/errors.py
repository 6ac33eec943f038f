# SPDX-License-Identifier: Apache-2.0
"""The one family of errors: what is wrong, where, and what to do, in a single line."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SisError(Exception):
    """A refusal that a person can act on; command lines print it as one line and exit with code 2."""

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f" [{where}]" if where is not None else ""
        remedy = f" - {fix}" if fix else ""
        super().__init__(" ".join(f"{what}{place}{remedy}".split()))


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Name the nearest of `candidates`, or list them all when none is near."""
    known = sorted(set(candidates))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + (", ".join(known) if known else "none")


def first_of(names: Iterable[object], limit: int = 5) -> str:
    """Spell out the first `limit` names and count the rest, for messages about many items."""
    every = [str(n) for n in names]
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest


@contextmanager
def refusing_in_one_line() -> Iterator[None]:
    """Turn a SisError into one line on stderr and end the process, where a host program would print a traceback."""
    try:
        yield
    except SisError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        # Snakemake catches SystemExit and reports it as its own failure; nothing has been started yet.
        os._exit(error.exit_code)
