# SPDX-License-Identifier: Apache-2.0
"""Runs commands of the project and strikes at their N-th write point.

A write point is a call that brings bytes or names to the disk: a file written, synchronised, renamed or removed, a
folder made or removed. The strike is a signal to the process itself, just before or just after that call; `torn` lets
a file be half written first.

By hand:  python tests/faults/killer.py 7 -- sample --experiment tiny ...   (0 only counts)
As a server (`--serve`) it imports the heavy modules once and forks for every command: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Imported before the first fork, and searched for names that were bound at import.
MODULES = (
    "sis.cli",
    "sis.data.prepare",
    "sis.data.layouts.scenes",
    "sis.data.verify",
    "sis.device",
    "sis.methods.palette",
    "sis.methods.sdm",
    "sis.plan",
    "sis.sampling.ingest",
    "sis.sampling.run",
    "sis.training.train",
    "evaluators.cli",
    "evaluators.measure",
    "evaluators.score",
    "evaluators.segmenters.scenes_unet",
    "PIL.PngImagePlugin",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "torch._dynamo",
)


class Striker:
    """Counts write points and sends the signal at the chosen one.

    at: number of the write point, from 1; 0 never strikes. when: before, after or torn. log: a line is appended to it
    for every write point (`point NAME`) and for every finished unit of work (`work NAME`).
    """

    def __init__(self, at: int, when: str, number: int, log: Path) -> None:
        self.at, self.when, self.number, self.log = at, when, number, log
        self.count, self._inside = 0, False

    def note(self, line: str) -> None:
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{line}\n".encode())
        os.close(handle)

    def wrap(self, call: Callable, name: str, counts: Callable[..., bool] | None = None) -> Callable:
        """The same call, counted; `counts` says for its arguments whether it changes the disk at all."""

        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._inside or (counts is not None and not counts(*args, **kwargs)):
                return call(*args, **kwargs)
            self._inside = True
            try:
                return self._struck(call, name, args, kwargs)
            finally:
                self._inside = False

        return wrapped

    def _struck(self, call: Callable, name: str, args: tuple, kwargs: dict) -> Any:
        self.count += 1
        self.note(f"point {name}")
        if self.count != self.at:
            return call(*args, **kwargs)
        if self.when == "before":
            os.kill(os.getpid(), self.number)
        result = call(*args, **kwargs)
        if self.when == "torn" and name.startswith("write"):
            # A Parquet writer knows its file; everybody else is told.
            written = Path(next(a for a in (*args, getattr(args[0], "where", None)) if isinstance(a, str | Path)))
            os.truncate(written, written.stat().st_size // 2)
        if self.when != "before":
            os.kill(os.getpid(), self.number)
        return result

    def install(self) -> None:
        """Wrap every way in which the project writes."""
        import pyarrow.parquet as pq
        import safetensors.torch

        os.fsync = self.wrap(os.fsync, "fsync")
        os.replace = self.wrap(os.replace, "replace")
        os.unlink = self.wrap(os.unlink, "unlink", _present)
        os.rmdir = self.wrap(os.rmdir, "rmdir", _present)
        os.mkdir = self.wrap(os.mkdir, "mkdir", _makeable)
        Path.write_bytes = self.wrap(Path.write_bytes, "write bytes")
        pq.write_table = self.wrap(pq.write_table, "write table")
        pq.ParquetWriter.write_table = self.wrap(pq.ParquetWriter.write_table, "write row group")
        saved, original = self.wrap(safetensors.torch.save_file, "write tensors"), safetensors.torch.save_file
        for module in [
            m for n, m in sys.modules.items() if n.partition(".")[0] in ("sis", "evaluators", "safetensors")
        ]:
            if getattr(module, "save_file", None) is original:
                module.save_file = saved
        self._count_work()

    def _count_work(self) -> None:
        """Note each computed batch, training step and prepared shard."""
        import sis.data.prepare
        import sis.sampling.run
        from sis.training.loop import TrainingRun

        make_batches, step, write_shard = (
            sis.sampling.run.batch_maker,
            TrainingRun._step,
            sis.data.prepare._write_shard,
        )

        def noted(call: Callable, name: Callable[..., str]) -> Callable:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                result = call(*args, **kwargs)
                self.note(f"work {name(*args)}")
                return result

            return wrapped

        sis.sampling.run.batch_maker = lambda *a: noted(make_batches(*a), lambda keys: f"{keys[0]}")
        TrainingRun._step = noted(step, lambda run, number, *rest: f"{number}")

        def shards(path: Path, *rest: Any) -> Any:
            yield from write_shard(path, *rest)
            self.note(f"work {path.name}")

        sis.data.prepare._write_shard = shards


def _present(path: Any, *, dir_fd: int | None = None) -> bool:
    return dir_fd is not None or os.path.lexists(path)


def _makeable(path: Any, *rest: Any, **named: Any) -> bool:
    """`mkdir(parents=True)` tries first and makes the parents later."""
    return not Path(path).exists() and Path(path).parent.exists()


def run(request: dict[str, Any]) -> int:
    """Run one command in this process; returns its exit code.

    request: program ("sis" or "evaluators"), argv, log, at, when, signal, and set: module attributes to change first.
    """
    for name in MODULES:
        importlib.import_module(name)
    for name, value in request.get("set", {}).items():
        module, attribute = name.rsplit(".", 1)
        setattr(sys.modules[module], attribute, value)
    number = getattr(signal, f"SIG{request.get('signal', 'KILL')}")
    Striker(request.get("at", 0), request.get("when", "before"), number, Path(request["log"])).install()
    main = sys.modules["sis.cli" if request.get("program", "sis") == "sis" else "evaluators.cli"].main
    return main(request["argv"])


def _child(request: dict[str, Any], out: Path, err: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    try:
        code = run(request)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve(scratch: Path) -> None:
    """Answer requests until the input ends; one fork each. {"continue": pid} wakes a stopped one and waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in MODULES:
        importlib.import_module(name)
    provenance = sys.modules["sis.data.provenance"]
    commit = provenance._commit()
    provenance._commit = lambda: commit  # hundreds of forks need not ask git again
    gc.collect()
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = request.get("continue", 0)
        if pid:
            os.kill(pid, signal.SIGCONT)
        else:
            request["log"] = str(scratch / "new.log")
            Path(request["log"]).touch()
            pid = os.fork()
            if pid == 0:
                _child(request, scratch / "new.out", scratch / "new.err")
        _, status = os.waitpid(pid, os.WUNTRACED)
        reply: dict[str, Any] = {"pid": pid, "code": None}
        if not os.WIFSTOPPED(status):
            reply["code"] = os.waitstatus_to_exitcode(status)
        for kind in ("log", "out", "err"):
            new, own = scratch / f"new.{kind}", scratch / f"{pid}.{kind}"
            if "continue" not in request:
                shutil.move(new, own)
            reply[kind] = own.read_text(errors="replace")
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> int:
    """Parse the command line; see the top of this file."""
    parser = argparse.ArgumentParser(description="Strike a command of sis at its N-th write point.")
    parser.add_argument("at", nargs="?", type=int, default=0, help="number of the write point; 0 only counts")
    parser.add_argument("--when", choices=["before", "after", "torn"], default="before")
    parser.add_argument("--signal", default="KILL", help="KILL, TERM, INT or STOP")
    parser.add_argument("--log", type=Path, default=Path("write-points.log"), help="a line for every write point")
    parser.add_argument("--serve", type=Path, metavar="SCRATCH", help="answer requests; scratch folder")
    parser.add_argument("argv", nargs="*", help="after --: arguments of sis")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    return run(vars(arguments) | {"program": "sis"})


if __name__ == "__main__":
    sys.exit(main())
