# SPDX-License-Identifier: Apache-2.0
"""What runs inside a job: one of our own commands, with its end written down where the head looks for it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sis.launch.record import Outcome, note_event, source_digest

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

#: `error.exit_code` of a refusal, and what Python itself returns after a traceback.
REFUSED, CRASHED = 2, 1


@dataclass(frozen=True)
class StageJob:
    """A command of ours as a job that can be stopped and queued again.

    main: the command line's entrance. argv: its words. folder: of this submission. index: of this job in its array.
    code: digest of the sources that the head had; others are refused, since a job may wait for days.
    """

    main: Callable[[Sequence[str]], int]
    argv: tuple[str, ...]
    folder: Path
    index: int
    code: str

    def __call__(self) -> int:
        """Run the command; returns its exit code, which `outcome-<index>.json` holds, too."""
        first = _join_torch() == 0
        if first:
            os.environ["SIS_PROGRESS"] = str(self.folder / f"progress-{self.index}.json")
            note_event(self.folder, self.index, "start")
        began = time.time()
        code, end = CRASHED, "crash"
        try:
            code = self._run()
            end = "end"
        except SystemExit:
            # submitit leaves so after it queued the job again; there is no outcome yet.
            end = "requeue"
            raise
        finally:
            if first:
                note_event(self.folder, self.index, end)
            if first and end != "requeue":
                Outcome(code, _job_id(), socket.gethostname(), round(time.time() - began, 1)).save(
                    self.folder, self.index
                )
        return code

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same command, which goes on from its last state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> int:
        found = source_digest()
        if found != self.code:
            sys.stderr.write("error: the code changed while this job was queued - run the same command again\n")
            return REFUSED
        return self.main(list(self.argv))


def _join_torch() -> int:
    """Tell torch.distributed of the other processes of this job, if there are; returns the rank of this one."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        # Slurm has chosen the GPUs already.
        torch = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        return torch.rank
    return 0


def _job_id() -> str:
    from submitit import JobEnvironment

    return JobEnvironment().job_id
