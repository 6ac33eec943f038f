# SPDX-License-Identifier: Apache-2.0
"""What a launcher asks a queue of jobs: how they are, whether one is there already, and to end or begin them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sis.errors import SisError

#: States that a job does not leave by itself. PREEMPTED and NODE_FAIL may still become PENDING: a job that is queued
#: again shows them for a moment.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"}
)


@dataclass(frozen=True)
class JobState:
    """State of a job, or of one member of an array.

    state: Slurm's long name, as RUNNING. reason: why it waits or how it ended. nodes: where. exit_code: `1:0`, where
    that is known.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: str = ""


class Unreachable(SisError):  # noqa: N818
    """The controller does not answer; nothing is known about any job."""


class Queue(Protocol):
    """Slurm's queue, or this machine's processes."""

    def states(self, job: str) -> dict[int, JobState] | None:
        """State of each member of a job by its index, a plain job's as 0.

        Empty when nobody remembers the job; None when the controller does not answer.
        """
        ...

    def find(self, name: str) -> list[str]:
        """Ids of this user's living jobs of a name. Raises Unreachable."""
        ...

    def cancel(self, job: str) -> None:
        """End a job with all its members."""
        ...

    def release(self, job: str) -> None:
        """Let a job start that was submitted held. Raises Unreachable."""
        ...
