# SPDX-License-Identifier: Apache-2.0
"""Gives jobs to submitit: a Slurm job or array, or processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sis.config.cluster import Needs, SlurmSite
from sis.data.parallel import available_cores
from sis.launch.diagnosis import refused
from sis.launch.job import StageJob
from sis.launch.local_queue import JOB_NAME_VARIABLE, LocalQueue, process_id
from sis.launch.queue import Queue, Unreachable
from sis.launch.slurm_queue import SlurmQueue
from sis.plan_cluster import gres, megabytes, minutes, partition

if TYPE_CHECKING:
    from submitit.core.core import PicklingExecutor

#: Time limits and preemptions that submitit counts before it gives a job up; a launcher counts by itself.
_NO_LIMIT = 1_000_000
#: sbatch's words when no node fits, which is also said while no node has reported.
_NO_SUCH_NODE = "node configuration is not available"
#: Seconds that nodes may take to report to a controller that was started again.
_WAKING = 600.0
#: What a site may say, in the words of sbatch.
_CHOICES = ("partition", "account", "qos", "constraint", "exclude", "gres")


class Submitter(Protocol):
    """Where jobs go."""

    queue: Queue
    #: Seconds that files of an ended job may take to be seen here.
    patience: float

    def at_most(self, needs: Needs) -> int:
        """How many jobs an array may have."""
        ...

    def submit(self, jobs: Sequence[StageJob], name: str, folder: Path, needs: Needs) -> str:
        """Hand jobs in, held where that is possible; returns their id. Raises SisError when they are refused."""
        ...

    def log(self, folder: Path, job: str, index: int) -> Path:
        """Where the job's first process writes what it has to say."""
        ...


class SlurmSubmitter:
    """Slurm by sbatch. The jobs are held until `queue.release`: none starts before its head has written it down."""

    def __init__(self, site: SlurmSite) -> None:
        self.site, self.patience = site, site.patience_seconds
        self._slurm, self._refused_since = SlurmQueue(), 0.0
        self.queue: Queue = self._slurm

    def at_most(self, needs: Needs) -> int:
        return self.site.array_size

    def submit(self, jobs: Sequence[StageJob], name: str, folder: Path, needs: Needs) -> str:
        from submitit import SlurmExecutor

        self._ask(needs)
        try:
            executor = SlurmExecutor(folder=folder, max_num_timeout=_NO_LIMIT)
            executor.update_parameters(**self.parameters(name, needs))
            return _submitted(executor, jobs)
        except RuntimeError as error:  # submitit's family, with what sbatch printed
            raise refused(str(error), self.site) from error
        except (OSError, subprocess.SubprocessError) as error:
            raise refused(getattr(error, "stderr", None) or str(error), self.site) from error

    def _ask(self, needs: Needs) -> None:
        """Let sbatch judge a job like these without taking it: held jobs are not judged when they are handed in.

        Raises Unreachable while a controller that was just started waits for its nodes: it knows of no GPUs before.
        """
        wanted = self.parameters("sis", needs)
        names = ("time", "nodes", "ntasks_per_node", "cpus_per_task", "mem", *_CHOICES)
        options = [f"--{name.replace('_', '-')}={wanted[name]}" for name in names if name in wanted]
        options += [f"--{name}={value}" for name, value in self.site.extra.items()]
        try:
            command = ["sbatch", "--test-only", *options, "--wrap", "true"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60, start_new_session=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise refused(str(error), self.site) from error
        if done.returncode:
            if _NO_SUCH_NODE in done.stderr and self._waking(needs):
                raise Unreachable("Slurm's controller has just started and has not heard of all its nodes yet")
            raise refused(done.stderr, self.site)
        self._refused_since = 0.0

    def _waking(self, needs: Needs) -> bool:
        """Whether nodes may still report; one that is dead keeps its unknown state, on some sites for ever."""
        self._refused_since = self._refused_since or time.monotonic()
        patient = time.monotonic() - self._refused_since < _WAKING
        return patient and self._slurm.waking(partition(self.site, needs))

    def parameters(self, name: str, needs: Needs) -> dict[str, Any]:
        """submitit's words for what a job needs here; what nobody asks for is left out."""
        site = self.site
        optional = {"partition": partition(site, needs), "account": site.account, "qos": site.qos}
        optional |= {"constraint": site.constraint, "exclude": site.exclude, "gres": gres(site, needs)}
        return {
            "job_name": name,
            "time": minutes(needs),
            "nodes": needs.nodes or 1,
            "ntasks_per_node": needs.tasks or 1,
            "cpus_per_task": needs.cpus or 1,
            "mem": f"{megabytes(needs)}M",
            "signal_delay_s": site.signal_seconds,
            "array_parallelism": site.array_jobs,
            "setup": site.setup or None,
            # One process that fails must not leave the others waiting for it.
            "srun_args": ["--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, "hold": True, **site.extra},
            **{key: value for key, value in optional.items() if value},
        }

    def log(self, folder: Path, job: str, index: int) -> Path:
        member = folder / f"{job}_{index}_0_log.err"
        return member if member.exists() else folder / f"{job}_0_log.err"


class LocalSubmitter:
    """Processes of this machine, each watched by one of submitit's controllers, which live on without their head."""

    def __init__(self, site: SlurmSite) -> None:
        self.site, self.patience = site, 2.0
        self.queue: Queue = LocalQueue()

    def at_most(self, needs: Needs) -> int:
        """As many as there are GPUs for, or cores."""
        gpus = _visible_gpus()
        by_gpu = len(gpus) // needs.gpus if needs.gpus and gpus else available_cores()
        return max(1, min(by_gpu, available_cores() // (needs.cpus or 1)))

    def submit(self, jobs: Sequence[StageJob], name: str, folder: Path, needs: Needs) -> str:
        from submitit import LocalExecutor
        from submitit.helpers import environment_variables

        gpus, each = _visible_gpus(), needs.gpus or 0
        # A closed terminal must not end what its head leaves behind.
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ids = []
        try:
            for number, job in enumerate(jobs):
                executor = LocalExecutor(folder=folder, max_num_timeout=_NO_LIMIT)
                mine = gpus[number * each : (number + 1) * each]
                executor.update_parameters(
                    timeout_min=(needs.hours or 1) * 60, tasks_per_node=needs.tasks or 1, gpus_per_node=len(mine),
                    visible_gpus=mine, signal_delay_s=self.site.signal_seconds, setup=self.site.setup,
                )  # fmt: skip
                with environment_variables(**{JOB_NAME_VARIABLE: name}):
                    ids.append(process_id(int(_submitted(executor, [job]))))
        finally:
            signal.signal(signal.SIGHUP, before)
        return "+".join(ids)

    def log(self, folder: Path, job: str, index: int) -> Path:
        return folder / f"{job.split('+')[index].split('@')[0]}_0_log.err"


def submitter(launcher: str, site: SlurmSite) -> Submitter:
    """Where `--launcher slurm` or `local` sends its jobs."""
    return SlurmSubmitter(site) if launcher == "slurm" else LocalSubmitter(site)


def _submitted(executor: PicklingExecutor, jobs: Sequence[StageJob]) -> str:
    if len(jobs) == 1:
        return executor.submit(jobs[0]).job_id
    with executor.batch():
        handed_in = [executor.submit(job) for job in jobs]
    return handed_in[0].job_id.split("_")[0]


def _visible_gpus() -> list[int]:
    """Numbers of this machine's GPUs that this process may use; torch is not asked, it would take seconds."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(word) for word in named.split(",") if word.strip().isdigit()]
    return [i for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]
