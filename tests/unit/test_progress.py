# SPDX-License-Identifier: Apache-2.0
"""Progress: a line now and then in a log, a bar on a terminal."""

from __future__ import annotations

import errno
import io
import json
import re
import time
from pathlib import Path

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


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that SIS_PROGRESS names, written at every update."""
    path = tmp_path / "progress-0.json"
    monkeypatch.setenv(progress.FILE_VARIABLE, str(path))
    monkeypatch.setattr(progress, "FILE_INTERVAL", 0.0)
    return path


def test_who_waits_reads_a_file(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("train scenes/sdm", 50, "steps", done=10) as bar:
        assert json.loads(told.read_text())["done"] == 10
        now[0] += 4.0
        bar.update(6)
        facts = json.loads(told.read_text())
    assert abs(facts.pop("at") - time.time()) < 60
    expected = {"title": "train scenes/sdm", "done": 16, "total": 50, "unit": "steps", "rate": 1.5}
    assert facts == expected
    assert [p.name for p in told.parent.iterdir()] == [told.name]


def test_the_rate_of_the_file_forgets_what_was_there_already(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("sample", 100_000, "images") as bar:
        bar.update(50_000)
        for _ in range(60):
            now[0] += 2.0
            bar.update(4)
        assert json.loads(told.read_text())["rate"] == 2.0


def test_the_file_is_written_now_and_then_and_at_the_end(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FILE_INTERVAL", 3600.0)
    with Progress("train", 3, "steps") as bar:
        bar.update(2)
        assert json.loads(told.read_text())["done"] == 0
    assert json.loads(told.read_text())["done"] == 2


def test_a_process_that_does_not_speak_for_the_job_writes_no_file(told: Path) -> None:
    with Progress("train", 3, "steps", stream=io.StringIO()) as bar:
        bar.update(3)
    assert not told.exists()


def test_a_file_that_cannot_be_written_does_not_stop_the_work(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with Progress("train", 3, "steps") as bar:
        bar.update(3)
    assert bar.done == 3 and not list(told.parent.iterdir())
    monkeypatch.setenv(progress.FILE_VARIABLE, str(told.parent / "away" / "progress-0.json"))
    with Progress("train", 3, "steps") as bar:
        bar.update(3)
    assert bar.done == 3
