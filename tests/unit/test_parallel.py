# SPDX-License-Identifier: Apache-2.0
"""Work in several processes: same results in the same order, clear ends, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sis.data.parallel import available_cores, ordered_map, worthwhile
from sis.errors import SisError

SLEEPER = """
import sys, time
from pathlib import Path
from sis.data.parallel import ordered_map

def work(task):
    Path(sys.argv[1], str(__import__("os").getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    for _ in ordered_map(work, range(2), 2):
        pass
"""


def slower_when_even(task: int) -> tuple[int, int]:
    time.sleep(0.02 if task % 2 == 0 else 0)
    return task, os.getpid()


def refuse_five(task: int) -> int:
    if task == 5:
        raise SisError("this one is bad", where=f"task {task}", fix="leave it out")
    return task


def die(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_results_come_in_the_order_of_the_tasks_from_several_processes() -> None:
    results = list(ordered_map(slower_when_even, range(20), 2))
    assert [task for task, _ in results] == list(range(20))
    assert len({pid for _, pid in results}) == 2 and os.getpid() not in {pid for _, pid in results}


def test_one_worker_is_this_very_process_and_reads_no_task_ahead() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(3):
            taken.append(task)
            yield task

    results = ordered_map(slower_when_even, tasks(), 1)
    assert next(results) == (0, os.getpid()) and taken == [0]


def test_only_a_bounded_number_of_tasks_is_in_flight() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(1000):
            taken.append(task)
            yield task

    results = ordered_map(slower_when_even, tasks(), 2)
    next(results)
    assert len(taken) <= 10
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusal_arrives_as_it_was_raised(workers: int) -> None:
    results = ordered_map(refuse_five, range(10), workers)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(SisError, match="this one is bad") as caught:
        next(results)
    assert (caught.value.where, caught.value.fix) == ("task 5", "leave it out")


def test_a_worker_that_is_killed_ends_the_work_in_one_line() -> None:
    with pytest.raises(SisError, match="a worker process died - it was killed"):
        list(ordered_map(die, range(4), 2))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script, pids = tmp_path / "sleeper.py", tmp_path / "pids"
    script.write_text(SLEEPER)
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)])
    try:
        _wait_until(lambda: len(list(pids.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(p.name) for p in pids.iterdir()]
    assert len(workers) == 2
    _wait_until(lambda: not any(_alive(pid) for pid in workers))


def test_a_process_is_started_only_for_work_that_pays_for_it() -> None:
    assert [worthwhile(4, pictures) for pictures in (8, 63, 64, 100, 1000)] == [0, 1, 2, 3, 4]


def test_the_number_of_cores_respects_the_affinity() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def _wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
