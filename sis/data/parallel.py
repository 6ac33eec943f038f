# SPDX-License-Identifier: Apache-2.0
"""Work spread over processes or threads, given back in order, with a bounded number of results waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from sis.errors import SisError

Task = TypeVar("Task")
Result = TypeVar("Result")

#: A process more takes about as long to start as so many pictures take to read.
_FOR_EACH_WORKER = 32
#: Tasks in flight for each process: enough to keep it busy, few enough to keep memory constant.
_AHEAD = 4
#: Threads beyond these wait for Python's lock more than they decode.
_MOST_THREADS = 8


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_threads() -> int:
    """Threads that decode pictures: one a core, eight at most."""
    return min(available_cores(), _MOST_THREADS)


def worthwhile(workers: int, pictures: int) -> int:
    """How many of `workers` processes so many pictures are worth starting; 0 and 1 both mean this very process."""
    return min(workers, pictures // _FOR_EACH_WORKER)


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, preload: str = ""
) -> Iterator[Result]:
    """`function` of each task, in the order of `tasks`; one worker means this very process.

    Args:
        function: picklable; its arguments and results travel between processes.
        preload: module that the processes share, imported once.

    Raises what `function` raises for the first task that fails, and SisError when a process dies without a word.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload] if preload else [])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker)
    try:
        yield from _in_order(pool, function, tasks, _AHEAD * workers)
    except BrokenProcessPool as error:
        fix = "it was killed, perhaps for memory: use fewer workers; finished shards are kept"
        raise SisError("a worker process died", fix=fix) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def threaded_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`function` of each task by threads of this process, in the order of `tasks`, which are asked for here.

    While a result is in use at most `ahead` more are made. No threads (0) means that each is made when it is asked
    for. Close the iterator to end the threads early. Raises what `function` raises for the first task that fails.
    """
    if threads < 1:
        yield from map(function, tasks)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sis-ahead")
    try:
        yield from _in_order(pool, function, tasks, ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(function, task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _quiet_worker() -> None:
    """One thread each, no traceback on Ctrl-C, and no life after the parent's death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
