# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, one line every few seconds in a log, a small file for who waits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from sis.data.atomic import temporary_beside

#: Seconds between two lines when the output is not a terminal.
LINE_INTERVAL = 10.0
#: Names the file that a waiting launcher reads; unset: none is written.
FILE_VARIABLE = "SIS_PROGRESS"
#: Seconds between two writes of that file.
FILE_INTERVAL = 2.0
#: Writes that its rate is taken over: what an earlier attempt had finished is soon forgotten.
_RATE_WRITES = 31


class Progress:
    """Counts done work and says how fast it goes and when it will end; use as a context manager."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.resumed = done, done
        self.stream = stream or sys.stderr
        self._start = self._last = time.perf_counter()
        terminal = self.stream.isatty()
        self._bar = tqdm(total=total, initial=done, unit=unit, desc=title, file=self.stream) if terminal else None
        # Who is given another stream is not the process that speaks for the job.
        self._file = _ProgressFile.named() if stream is None else None

    def __enter__(self) -> Progress:
        if self._file is not None:
            self._file.write(self)
        if self._bar is None and self.resumed:
            self.stream.write(f"{self.title}: resumes at {self.done:,}/{self.total:,} {self.unit}\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.write(self)
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._line({}, final=True)

    def update(self, count: int, **numbers: float) -> None:
        """Add `count` units of work; `numbers` (a loss, say) are shown beside it."""
        self.done += count
        if self._file is not None and self._file.due():
            self._file.write(self)
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
            parts.append(f"done in {clock(seconds)}")
        elif rate > 0:
            parts.append(f"ETA {clock((self.total - self.done) / rate)}")
        parts += [f"{k} {v:.4g}" for k, v in numbers.items()]
        self.stream.write(", ".join(parts) + "\n")
        self.stream.flush()


class _ProgressFile:
    """The file that SIS_PROGRESS names: {"title", "done", "total", "unit", "rate", "at"}, the last two in seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_WRITES)

    @classmethod
    def named(cls) -> _ProgressFile | None:
        path = os.environ.get(FILE_VARIABLE)
        return cls(Path(path)) if path else None

    def due(self) -> bool:
        return not self._marks or time.monotonic() - self._marks[-1][0] >= FILE_INTERVAL

    def write(self, progress: Progress) -> None:
        """Replace the file; a disk that is full or away never stops the work itself."""
        now = time.monotonic()
        self._marks.append((now, progress.done))
        since, before = self._marks[0]
        rate = (progress.done - before) / (now - since) if now > since else 0.0
        facts = {"title": progress.title, "done": progress.done, "total": progress.total, "unit": progress.unit}
        temporary = temporary_beside(self.path)
        try:
            temporary.write_text(json.dumps({**facts, "rate": rate, "at": time.time()}))
            os.replace(temporary, self.path)  # noqa: PTH105 (named by the fault tests)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def clock(seconds: float) -> str:
    """A duration as 4:20 or 1:04:20."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
