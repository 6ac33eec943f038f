# SPDX-License-Identifier: Apache-2.0
"""What happened to a job, in one line: from its state, its log, or Slurm's refusal to take it."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

from sis.config.cluster import Needs, SlurmSite
from sis.errors import SisError
from sis.launch.queue import JobState, Unreachable

#: Ends that say nothing about the work: a new submission may well succeed.
TRANSIENT = frozenset({"NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "PREEMPTED"})

_TAIL_BYTES = 1 << 16
#: What Slurm says of a job whose output file could not be opened on its node (an error of its own, not a signal).
_LOG_UNWRITABLE = "0:53"
_AGAIN = "start the same command again: it goes on where this stopped"
_SITE = "`slurm:` in config/config.yaml"
_CARD = "`cluster:` of the experiment or of the method's card"

# Lines of Slurm, of the shell and of submitit around what the program itself said.
_AROUND = re.compile(
    r"^(srun|slurmstepd[\w.-]*|sbatch|submitit|slurmd[\w.-]*)\b.*(:|INFO|WARNING)|^\S*slurm_script: line \d+:|^Killed$"
)
_MEMORY = re.compile(
    r"oom.kill|Exceeded (job|step) memory limit|exceeded memory limit|Some of your processes may have been killed by"
    r"|^MemoryError|Cannot allocate memory|can't allocate memory|std::bad_alloc|^numpy.*ArrayMemoryError",
    re.IGNORECASE,
)
_GPU_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_KILLED = re.compile(r"task \d+: Killed|Exited with exit code 137|^Killed$")
_LAST_WORDS = [
    (re.compile(r"DUE TO TIME LIMIT"), "TIMEOUT"),
    (re.compile(r"DUE TO PREEMPTION"), "PREEMPTED"),
    (re.compile(r"DUE TO NODE FAILURE"), "NODE_FAIL"),
    (re.compile(r"CANCELLED AT"), "CANCELLED"),
]


def transient(state: JobState) -> bool:
    """Whether a new submission may cure such an end."""
    return state.state in TRANSIENT


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, of a line that was rewritten (a progress bar) its last text; empty if it is absent."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    kept = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")]
    return "\n".join(kept[-lines:])


def diagnose(job: str, state: JobState | None, log: Path | None, needs: Needs) -> SisError:
    """Why a job ended without its result; state None: nobody remembers it, so its log is all there is.

    needs: what the job asked for, to say by how much it was too little.
    """
    said = tail(log, 40) if log is not None else ""
    known = state or JobState(_from_log(said))
    name = f"job {job} ({known.nodes})" if known.nodes else f"job {job}"
    what, fix = _by_log(said, known, needs) or _by_state(known, needs) or _by_words(said, known, state is None)
    return SisError(f"{name} {what}", where=log, fix=fix)


def _by_log(said: str, state: JobState, needs: Needs) -> tuple[str, str] | None:
    """Ends that only the log tells apart: Slurm calls some of them FAILED or CANCELLED."""
    lines = said.splitlines()
    if state.state in {"TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}:
        return None
    if any(_GPU_MEMORY.search(line) for line in lines):
        return "ran out of GPU memory", f"ask for a larger GPU (gpu_type in {_SITE}) or make the method's batch smaller"
    if state.state == "OUT_OF_MEMORY" or any(_MEMORY.search(line) for line in lines):
        return f"ran out of memory: asked for {_memory(needs)}", f"raise memory_gb in {_CARD}"
    if any(_FULL.search(line) for line in lines):
        return f"found no space left: {_last_words(said)}", "make room or raise the quota there, then start it again"
    # After scancel such lines mean only that the job was slow to end.
    killed = state.exit_code in {"137:0", "0:9"} or any(_KILLED.search(line) for line in lines[-5:])
    if killed and state.state == "FAILED":
        asked = f"was killed (signal 9), most likely for its memory: asked for {_memory(needs)}"
        return asked, f"raise memory_gb in {_CARD}"
    return None


def _by_state(state: JobState, needs: Needs) -> tuple[str, str] | None:
    """Ends that Slurm names."""
    limit = f" of {needs.hours:g} h" if needs.hours is not None else ""
    ends = {
        "TIMEOUT": (f"reached its time limit{limit}", f"{_AGAIN}; or raise hours in {_CARD}"),
        "CANCELLED": (f"was cancelled{_by_whom(state.reason)}", _AGAIN),
        "NODE_FAIL": ("ended because its node failed", f"{_AGAIN}; a bad node can be left out (exclude in {_SITE})"),
        "BOOT_FAIL": ("ended because its node did not boot", f"{_AGAIN}; or leave the node out (exclude in {_SITE})"),
        "PREEMPTED": ("was preempted and not queued again", f"{_AGAIN}; `sis doctor --slurm` checks requeueing"),
        "DEADLINE": ("passed its deadline", f"look for a deadline in extra of {_SITE}; {_AGAIN}"),
    }
    return ends.get(state.state)


def _by_words(said: str, state: JobState, forgotten: bool) -> tuple[str, str]:
    """A failure or a disappearance, by the last words in the log."""
    words = _last_words(said)
    if forgotten:
        return f"vanished from the queue{f'; its last words: {words}' if words else ' without a word'}", _AGAIN
    if words and state.exit_code != _LOG_UNWRITABLE:
        return f"failed{_status(state)}: {words}", "see the log"
    where = f"node {state.nodes}" if state.nodes else "its node"
    could = (
        "could not open its log" if state.exit_code == _LOG_UNWRITABLE else f"failed{_status(state)} and left no log"
    )
    return (
        f"{could}: is the folder visible on {where}?",
        "keep the project and its artefacts on a file system that all nodes share; `sis doctor --slurm` checks it",
    )


def _from_log(said: str) -> str:
    """State of a job that nobody remembers, by what Slurm wrote at the very end of its log; else empty."""
    for line in reversed(said.splitlines()):
        if line.strip() and not _AROUND.search(line):
            return ""
        for pattern, state in _LAST_WORDS:
            if pattern.search(line):
                return state
    return ""


def _last_words(said: str) -> str:
    """The last line that the program wrote: its own refusal, or the end of a traceback; else Slurm's last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    refusals = [line.removeprefix("error: ") for line in lines[-20:] if line.startswith("error: ")]
    own = [line for line in lines if not _AROUND.search(line)]
    return (refusals or own or lines or [""])[-1][:300]


def _memory(needs: Needs) -> str:
    return f"{needs.memory_gb:g} GiB" if needs.memory_gb is not None else "no certain amount"


def _by_whom(reason: str) -> str:
    """Accounting's `by 1000` with the user's name; any other reason is why the job waited before."""
    match = re.fullmatch(r"by (\d+)", reason)
    if match is None:
        return ""
    try:
        return f" by {pwd.getpwuid(int(match[1])).pw_name}"
    except KeyError:
        return f" by user {match[1]}"


def _status(state: JobState) -> str:
    code, _, signal = state.exit_code.partition(":")
    if signal not in {"", "0"}:
        return f" (signal {signal})"
    return f" (exit code {code})" if code not in {"", "0"} else ""


# --- why Slurm does not take a job ----------------------------------------------------------------------------

_ABSENT = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Zero Bytes were transmitted"
)
_REFUSALS: list[tuple[str, str, str]] = [
    (
        r"invalid partition|Invalid partition name",
        "there is no {partition}",
        "set partition to one that `sinfo -s` lists",
    ),
    (
        r"account/partition combination",
        "{account} does not exist or may not use {partition}",
        "set account to one that `sacctmgr show assoc user=$USER` lists",
    ),
    (r"Invalid account", "there is no {account}", "set account to one that `sacctmgr show assoc user=$USER` lists"),
    (r"Invalid qos", "there is no {qos}", "set qos to one that `sacctmgr show assoc user=$USER` lists"),
    (
        r"Invalid generic resource|[Ii]nvalid gres|Invalid GRES",
        "the cluster has no such GPUs ({gpus})",
        "set gpu_type to one that `sinfo -o %G` lists",
    ),
    (
        r"Job violates accounting/QOS policy|QOSMax|AssocMax|AssocGrp|QOSGrp|MaxSubmit|submit limit|job count limit",
        "the account's limits do not allow this job now",
        "wait until others have ended, or ask {ask}",
    ),
    (
        r"Memory specification|Memory required|[Rr]equested memory|memory .*exceed",
        "no node has as much memory as was asked for",
        "lower memory_gb in " + _CARD + "; `sinfo -o '%n %m'` lists what nodes have",
    ),
    (
        r"[Tt]ime limit|time-limit|MaxTime",
        "the time that was asked for is over the limit of {partition}",
        "lower hours in " + _CARD + " (work goes on in the next job), or take another partition",
    ),
    (
        r"job array specification",
        "the array is larger than the site allows",
        "lower array_size; `scontrol show config` says MaxArraySize",
    ),
    (r"[Ii]nvalid feature", "no node has {constraint}", "correct constraint"),
    (r"[Ii]nvalid node name", "a node that is named does not exist ({exclude})", "correct exclude"),
    (
        r"node configuration is not available|Node count specification|More processors requested|PartitionConfig",
        "no node can give what was asked for ({gpus})",
        "lower gpus, cpus, memory_gb or nodes in "
        + _CARD
        + ", or take another partition; `sis doctor --slurm` compares",
    ),
    (
        r"unrecognized option|unrecognised option|Invalid --|invalid option|[Ii]nvalid directive",
        "sbatch does not understand an option",
        "correct extra",
    ),
    (r"Access/permission denied|Invalid user", "this user may not submit there", "ask {ask}"),
]


def refused(stderr: str, site: SlurmSite) -> SisError:
    """Why sbatch did not take a job, in words of the site's settings; Slurm's own last line is quoted.

    An Unreachable if nobody answered: the job may have been taken all the same.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(sbatch|srun|salloc): ", line)] or lines
    words = re.sub(r"^(sbatch: )?(error|fatal): (Batch job submission failed: )?", "", own[-1]) if own else "no words"
    words = words.removeprefix("sbatch: ")[:200]
    if _ABSENT.search("\n".join(own)):
        return Unreachable(f"Slurm's controller does not answer ({words})", fix="start it again when squeue answers")
    given = {
        "partition": _named(
            "partition", " or ".join(filter(None, dict.fromkeys([site.partition, site.cpu_partition])))
        ),
        "account": _named("account", site.account),
        "qos": _named("quality of service", site.qos),
        "gpus": f"gpu_type: {site.gpu_type}" if site.gpu_type else "any type",
        "constraint": _named("feature", site.constraint),
        "exclude": f"exclude: {site.exclude}",
        "ask": "whoever runs the cluster",
    }
    for pattern, what, fix in _REFUSALS:
        if re.search(pattern, "\n".join(own)):
            told = f"Slurm refused the job: {what.format(**given)} ({words})"
            return SisError(told, where=_SITE, fix=fix.format(**given))
    return SisError(f"Slurm refused the job: {words}", where=_SITE, fix="`sis doctor --slurm` checks the site")


def _named(kind: str, name: str) -> str:
    return f"{kind} {name!r}" if name else f"default {kind}"


# --- why a job does not start ---------------------------------------------------------------------------------

_STUCK: list[tuple[str, str]] = [
    (r"JobHeldUser", "it is held by its user: scontrol release starts it"),
    (r"JobHeldAdmin", "it is held by an administrator"),
    (r"launch failed requeued held", "its start failed on a node and Slurm holds it: scontrol release tries again"),
    (r"requeued in held state|JobHoldMaxRequeue", "it was queued again and is held: scontrol release starts it"),
    (r"DependencyNeverSatisfied", "a job it waits for has failed"),
    (r"PartitionTimeLimit", "it asks for more time than its partition allows: lower hours"),
    (r"PartitionNodeLimit", "it asks for more nodes than its partition has: lower nodes"),
    (r"PartitionConfig", "it asks for more than its partition has or allows: lower cpus, gpus or memory_gb"),
    (r"PartitionInactive", "its partition takes no jobs"),
    (r"ReqNodeNotAvail|ReservedForMaintenance", "the nodes it needs are not available"),
    (r"BadConstraints|FrontEndDown", "no node fulfils what it asks for"),
    (r"AccountNotAllowed|InvalidAccount", "its account may not use this partition"),
    (r"QOSNotAllowed|InvalidQOS", "its quality of service may not be used here"),
    # Not RunMinutes: what others run counts there, and ends.
    (r"(QOS|Assoc)\w*((?<!Run)Minutes|GrpWall)|QOSUsageThreshold", "the budget of its account is used up"),
    (r"(QOS|Assoc)\w*(WallDuration|WallLimit|TimeLimit)\w*", "its account may not ask for so much time: lower hours"),
    (r"(QOS|Assoc|Max)\w*Per(Job|Node|Limit)\w*|(QOS|Assoc)\w*Min[CGMN]\w*", "one job may not ask for so much there"),
    (r"DeadLine", "its deadline has passed"),
]  # fmt: skip


def stuck(state: JobState) -> str:
    """Why a pending job will not start by itself, or empty when it only waits its turn.

    Limits on how much an account runs at a time (QOSMaxJobsPerUserLimit, AssocGrpGRES, ...) are waiting: they end with
    other jobs. Limits on one job and used-up budgets are not.
    """
    if state.state not in {"PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}:
        return ""
    for pattern, words in _STUCK:
        if re.search(pattern, state.reason, re.IGNORECASE):
            return f"{words} ({state.reason})"
    return "" if state.state == "PENDING" else f"Slurm holds it ({state.state})"
