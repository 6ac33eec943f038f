# SPDX-License-Identifier: Apache-2.0
"""Flips single bits of files in place, and puts them right again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Flipper:
    """Flips bits of a file in place; size, time and inode stay as they were."""

    def __init__(self, path: Path) -> None:
        self.path, self.whole, self.times = path, path.read_bytes(), path.stat()

    def flip(self, position: int, bit: int) -> None:
        self._put(position, self.whole[position] ^ 1 << bit)

    def mend(self, position: int) -> None:
        self._put(position, self.whole[position])

    @contextmanager
    def flipped(self, position: int, bit: int) -> Iterator[None]:
        self.flip(position, bit)
        try:
            yield
        finally:
            self.mend(position)

    def place(self, rng: random.Random) -> tuple[int, int]:
        """A byte of the file and one of its bits."""
        return rng.randrange(len(self.whole)), rng.randrange(8)

    def _put(self, position: int, value: int) -> None:
        with self.path.open("r+b") as handle:
            handle.seek(position)
            handle.write(bytes([value]))
        os.utime(self.path, ns=(self.times.st_atime_ns, self.times.st_mtime_ns))
