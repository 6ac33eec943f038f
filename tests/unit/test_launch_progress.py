# SPDX-License-Identifier: Apache-2.0
"""One line about all jobs of a launch, from what they write and what the queue says."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from sis.launch import progress
from sis.launch.progress import JobProgress
from sis.launch.queue import JobState

RUNNING, PENDING, COMPLETED = JobState("RUNNING", nodes="n1"), JobState("PENDING", "Priority"), JobState("COMPLETED")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(
    folder: Path, index: int, done: int, total: int, rate: float, title: str, unit: str, at: float = 1.0
) -> None:
    facts = {"title": title, "done": done, "total": total, "unit": unit, "rate": rate, "at": at}
    (folder / f"progress-{index}.json").write_text(json.dumps(facts))


def steps(folder: Path, done: int, rate: float, at: float = 1.0) -> None:
    report(folder, 0, done, 2000, rate, "train scenes/sdm-ab12", "steps", at)


def images(folder: Path, index: int, done: int, rate: float, at: float = 1.0) -> None:
    report(folder, index, done, 500, rate, "sample scenes/sdm", "images", at)


@pytest.fixture
def training(tmp_path: Path) -> JobProgress:
    return JobProgress("train scenes/sdm-ab12", tmp_path, stream=io.StringIO())


@pytest.fixture
def sampling(tmp_path: Path) -> JobProgress:
    return JobProgress("sample scenes/sdm-ab12", tmp_path, members=100, total=50_000, stream=io.StringIO())


def test_a_training_says_where_it_runs_how_fast_and_how_long(training: JobProgress) -> None:
    assert training.line("123", {0: PENDING}) == "train scenes/sdm-ab12: job 123 waiting (Priority)"
    assert training.line("123", {0: RUNNING}) == "train scenes/sdm-ab12: job 123 running on n1"
    steps(training.folder, 1200, 3.0769)
    expected = "train scenes/sdm-ab12: job 123 running on n1, 1,200/2,000 steps, 3.08 steps/s, ETA 4:20"
    assert training.line("123", {0: RUNNING}) == expected


def test_a_requeued_training_is_counted_and_its_old_rate_is_not(training: JobProgress) -> None:
    steps(training.folder, 1200, 3.0)
    training.line("123", {0: RUNNING})
    training.line("123", {0: JobState("COMPLETING", nodes="n1")})
    waiting = training.line("123", {0: PENDING})
    assert waiting == "train scenes/sdm-ab12: job 123 waiting (Priority), 1 requeued, 1,200/2,000 steps"
    assert "steps/s" not in training.line("123", {0: RUNNING}), "the file is still the first attempt's"
    steps(training.folder, 1250, 2.0, at=2.0)
    assert "1 requeued, 1,250/2,000 steps, 2 steps/s" in training.line("123", {0: RUNNING})
    training.line("123", {0: JobState("PREEMPTED")})
    assert "2 requeued" in training.line("123", {0: PENDING})


def test_a_job_that_ended_says_how(training: JobProgress) -> None:
    assert "job 7 out_of_memory" in training.line("7", {0: JobState("OUT_OF_MEMORY")})
    assert training.line("7", {}).endswith("job 7 has left the queue")
    assert training.line("7", None).endswith("job 7, the controller does not answer")


def test_an_array_adds_up_its_members(sampling: JobProgress) -> None:
    states = dict.fromkeys(range(12), COMPLETED) | dict.fromkeys(range(12, 16), RUNNING)
    states |= dict.fromkeys(range(16, 100), PENDING)
    for index in range(12):
        images(sampling.folder, index, 500, 90.0)
    for index in range(12, 16):
        images(sampling.folder, index, 30, 11.25)
    expected = "sample scenes/sdm-ab12: job 45, 12 done, 4 running, 84 waiting, 6,120/50,000 images, 45 images/s"
    assert sampling.line("45", states) == f"{expected}, ETA 16:15"


def test_members_that_the_controller_forgot_are_known_by_their_outcome(sampling: JobProgress) -> None:
    sampling.line("45", dict.fromkeys(range(100), RUNNING))
    for index in range(100):
        code = int(index >= 98)
        (sampling.folder / f"outcome-{index}.json").write_text(json.dumps({"code": code}))
    assert "job 45, 98 done, 2 failed" in sampling.line("45", {})


def test_a_member_that_runs_again_is_not_called_by_its_old_outcome(sampling: JobProgress) -> None:
    (sampling.folder / "outcome-0.json").write_text(json.dumps({"code": 1}))
    assert "1 running, 99 waiting" in sampling.line("45", {0: RUNNING})
    assert "job 45, 100 waiting, 1 requeued" in sampling.line("45", {0: PENDING})


def test_images_of_earlier_jobs_count_and_other_work_of_a_job_does_not(tmp_path: Path) -> None:
    found = JobProgress("sample scenes/sdm-ab12", tmp_path, members=2, total=3000, done=2000, stream=io.StringIO())
    images(tmp_path, 0, 100, 5.0)
    report(tmp_path, 1, 7, 9, 1.0, "photographs of scenes/val", "images")
    line = found.line("46", {0: RUNNING, 1: RUNNING})
    assert line.endswith("2 running, 2,100/3,000 images, 5 images/s, ETA 3:00")


def test_a_silent_job_adds_no_rate(training: JobProgress, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    steps(training.folder, 1000, 3.0)
    assert "3 steps/s" in training.line("1", {0: RUNNING})
    now[0] += progress.STALE_SECONDS - 1
    assert "3 steps/s" in training.line("1", {0: RUNNING})
    now[0] += 2
    assert training.line("1", {0: RUNNING}).endswith("running on n1, 1,000/2,000 steps")
    steps(training.folder, 1001, 3.0, at=2.0)
    assert "3 steps/s" in training.line("1", {0: RUNNING})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": 1}', '{"title": 1, "done": "x"}'])
def test_a_broken_file_is_no_progress(training: JobProgress, text: str) -> None:
    (training.folder / "progress-0.json").write_text(text)
    assert training.line("1", {0: RUNNING}).endswith("job 1 running on n1")


def test_a_log_gets_a_line_at_each_change_and_each_minute(
    training: JobProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = training.stream
    assert isinstance(stream, io.StringIO)
    looks = [(0, PENDING), (10, PENDING), (20, RUNNING), (30, RUNNING), (79, RUNNING), (80, RUNNING), (90, None)]
    counts = []
    for second, state in looks:
        now[0] = float(second)
        training.show("1", {0: state} if state else None)
        counts.append(stream.getvalue().count("\n"))
    assert counts == [1, 1, 2, 2, 2, 3, 4]
    training.close()
    assert stream.getvalue().count("\n") == 4


def test_a_terminal_has_one_line_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    stream = Terminal()
    with JobProgress("train scenes/sdm-ab12", tmp_path, stream=stream) as shown:
        for state in (PENDING, RUNNING, None):
            shown.show("123", {0: state} if state else None)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = [line.removesuffix("\x1b[K") for line in text.strip("\n").split("\r")[1:]]
    assert len(lines) == 3 and max(map(len, lines)) == 39
