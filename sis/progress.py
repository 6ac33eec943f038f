# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, one line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

#: Seconds between two lines when the output is not a terminal.
LINE_INTERVAL = 10.0


class Progress:
    """Counts done work and says how fast it goes and when it will end; use as a context manager."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.resumed = done, done
        self.stream = stream or sys.stderr
        self._start = self._last = time.perf_counter()
        terminal = self.stream.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, desc=title, file=self.stream) if terminal else None

    def __enter__(self) -> Progress:
        if self._bar is None and self.resumed:
            self.stream.write(f"{self.title}: resumes at {self.done:,}/{self.total:,} {self.unit}\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._line({}, final=True)

    def update(self, count: int, **numbers: float) -> None:
        """Add `count` units of work; `numbers` (a loss, say) are shown beside it."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            if numbers:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()}, refresh=False)
            return
        now = time.perf_counter()
        if now - self._last >= LINE_INTERVAL:
            self._last = now
            self._line(numbers)

    def _line(self, numbers: dict[str, float], final: bool = False) -> None:
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rate = (self.done - self.resumed) / seconds
        parts = [f"{self.title}: {self.done:,}/{self.total:,} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if final:
            parts.append(f"done in {_clock(seconds)}")
        elif rate > 0:
            parts.append(f"ETA {_clock((self.total - self.done) / rate)}")
        parts += [f"{k} {v:.4g}" for k, v in numbers.items()]
        self.stream.write(", ".join(parts) + "\n")
        self.stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
