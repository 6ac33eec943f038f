# SPDX-License-Identifier: Apache-2.0
"""Progress: a line now and then in a log, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from sis import progress
from sis.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_ends_with_one_line_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with Progress("train", 1200, "steps", stream=stream) as bar:
        for _ in range(12):
            bar.update(100)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"train: 1,200/1,200 steps, \S+ steps/s, done in 0:00", lines[0])


def test_a_log_gets_a_line_with_rate_end_and_numbers_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    stream = io.StringIO()
    with Progress("train", 4, "steps", stream=stream) as bar:
        bar.update(1, loss=0.123456)
    first = stream.getvalue().splitlines()[0]
    assert re.fullmatch(r"train: 1/4 steps, \S+ steps/s, ETA \d+:\d\d, loss 0.1235", first)


def test_resumed_work_is_said_and_not_counted_into_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    stream = io.StringIO()
    with Progress("sample", 1000, "images", done=900, stream=stream) as bar:
        bar.done += 100
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sample: resumes at 900/1,000 images"
    assert lines[1] == "sample: 1,000/1,000 images, 10 images/s, done in 0:10"


def test_work_that_fails_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress("train", 3, "steps", stream=stream) as bar:
        bar.update(1)
        raise KeyError
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_closed() -> None:
    stream = Terminal()
    with Progress("train", 3, "steps", done=1, stream=stream) as bar:
        bar.update(2, loss=0.5)
    assert "train: 100%" in stream.getvalue() and "3/3" in stream.getvalue()


def test_nothing_to_do_is_done() -> None:
    stream = io.StringIO()
    with Progress("train", 0, "steps", stream=stream):
        pass
    assert "0/0 steps" in stream.getvalue()
