# SPDX-License-Identifier: Apache-2.0
"""Holds a Slurm's configuration against what the launcher and the workflow rely on."""

from __future__ import annotations

from collections.abc import Iterator

from sis.config.cluster import SlurmSite
from sis.errors import did_you_mean
from sis.launch.doctor_finding import Finding, bad, note, ok
from sis.launch.doctor_site import Facts

_FILE = "config/config.yaml"
#: The word that lets preempted jobs hear the signal, and where it stands: until Slurm 22.05, and later.
_WARNED = (("SlurmctldParameters", "preempt_send_user_signal"), ("PreemptParameters", "send_user_signal"))

#: Seconds between two looks of Snakemake's slurm executor at its jobs, when nothing happens.
_WORKFLOW_POLL = 180.0


def check_site(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    """Everything about the site that does not depend on the experiment."""
    yield from _partitions(facts, site)
    yield from _kinds_of_gpu(facts, site)
    yield from _accounting(facts, site)
    yield from _charged(facts, site)
    yield from _preemption(facts, site)
    yield from _limits(facts, site)


def used_partitions(facts: Facts, site: SlurmSite) -> list[str]:
    """The partitions of jobs with and without GPUs; '' where none is named and Slurm has no default."""
    main = site.partition or facts.default_partition
    return list(dict.fromkeys([main, site.cpu_partition or main]))


def _partitions(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    for name in used_partitions(facts, site):
        if not name:
            yield bad(
                "Slurm has no default partition and none is named", f"give `slurm: {{partition: ...}}` in {_FILE}"
            )
            continue
        if name not in facts.partitions:
            fix = f"correct `slurm:` in {_FILE}: {did_you_mean(name, facts.partitions)}"
            yield bad(f"there is no partition {name}", fix)
            continue
        partition = facts.partitions[name]
        here = [n for n in facts.nodes if name in n.partitions]
        usable = sum(n.usable for n in here)
        gpus = sum(sum(n.gpus.values()) for n in here)
        size = f"partition {name}: {usable} of {len(here)} nodes can take jobs, {gpus} GPUs"
        limit = f"time limit {partition.get('MaxTime', '?')}"
        if partition.get("State") != "UP":
            yield bad(f"partition {name} is {partition.get('State')}: its jobs wait for ever", "ask the administrators")
        elif not usable:
            yield bad(f"{size}, {limit}", "sinfo -R says why; ask the administrators")
        else:
            yield ok(f"{size}, {limit}")
        for key, chosen in (("AllowAccounts", site.account or facts.default_account), ("AllowQos", site.qos)):
            allowed = partition.get(key, "ALL")
            if chosen and allowed != "ALL" and chosen not in allowed.split(","):
                word = key.removeprefix("Allow").lower().removesuffix("s")
                yield bad(f"partition {name} takes no jobs of {word} {chosen}", f"it takes {allowed}: correct {_FILE}")


def _kinds_of_gpu(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    """Shards of one image set on different GPUs have different bits, and the set is refused."""
    name = used_partitions(facts, site)[0]
    kinds = sorted({kind or "untyped" for n in facts.nodes if name in n.partitions for kind in n.gpus})
    if len(kinds) > 1 and not site.gpu_type and not site.constraint:
        text = f"partition {name} has GPUs of several types ({', '.join(kinds)}) and none is named"
        yield note(f"{text}: bits differ between types", f"give `slurm: {{gpu_type: ...}}` in {_FILE}")


def _accounting(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    age = facts.seconds("MinJobAge")
    if facts.accounting == "on":
        yield ok("accounting is on: sacct tells how a job ended after squeue has forgotten it")
    elif facts.accounting == "dead":
        text = "accounting is configured and does not answer (sacct, sacctmgr): ends of jobs are read from squeue alone"
        yield note(text, "if it stays so, tell the administrators")
    else:
        yield note(
            f"accounting is off: ends of jobs are read from squeue, which forgets them after {age} s (MinJobAge); "
            "nobody can tell how a job ended while nothing watched it for longer"
        )
    # 0 means that finished jobs are kept until their number reaches MaxJobCount.
    by_launcher = 3 * site.poll_seconds
    if age is None or age == 0:
        return
    if age < by_launcher:
        text = f"squeue forgets a finished job after {age} s (MinJobAge), and the launcher looks every"
        fix = f"set `slurm: {{poll_seconds: {max(1, age // 3)}}}` in {_FILE}"
        level = note if facts.accounting == "on" else bad
        yield level(f"{text} {site.poll_seconds:g} s: it may miss how a job ended", fix)
    if age < _WORKFLOW_POLL and facts.accounting != "on":
        text = f"squeue forgets a finished job after {age} s (MinJobAge), and Snakemake looks at least every"
        fix = "ask the administrators for MinJobAge=300 or accounting; without, Snakemake may wait for ever"
        yield bad(f"{text} {_WORKFLOW_POLL:.0f} s", fix)
    elif age >= by_launcher:
        yield ok(f"MinJobAge {age} s, the launcher looks every {site.poll_seconds:g} s")


def _charged(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    """Account and quality of service."""
    if facts.accounting != "on":
        named = [f"{w} {v}" for w, v in (("account", site.account), ("qos", site.qos)) if v]
        if named:
            yield note(f"{' and '.join(named)} cannot be checked without accounting")
        return
    mine = {a.account for a in facts.associations}
    if site.account and site.account not in mine:
        yield bad(
            f"you may not charge account {site.account}", f"correct `slurm:` in {_FILE}: {_known(site.account, mine)}"
        )
    elif not site.account and not facts.default_account:
        yield note("no account is named and you have no default one", f"give `slurm: {{account: ...}}` in {_FILE}")
    else:
        yield ok(f"jobs are charged to account {site.account or facts.default_account}")
    if not site.qos:
        return
    charged = site.account or facts.default_account
    levels = {q for a in facts.associations if a.account == charged for q in a.qos}
    if site.qos not in facts.qos:
        yield bad(f"there is no qos {site.qos}", f"correct `slurm:` in {_FILE}: {_known(site.qos, facts.qos)}")
    elif levels and site.qos not in levels:
        yield bad(f"account {charged} may not use qos {site.qos}", f"correct {_FILE}: {_known(site.qos, levels)}")
    else:
        yield ok(f"qos {site.qos}")


def _known(name: str, names: object) -> str:
    return did_you_mean(name, list(names) if isinstance(names, set | dict) else [])


def _preemption(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    """Whether jobs may be preempted, are told before, have time to save, and come back."""
    if facts.config.get("PreemptType", "preempt/none") == "preempt/none":
        yield ok("no job is ever preempted here (PreemptType is preempt/none)")
        return
    warned = any(word in facts.config.get(key, "").split(",") for key, word in _WARNED)
    for name in used_partitions(facts, site):
        partition = facts.partitions.get(name, {})
        mode = partition.get("PreemptMode", "OFF")
        grace = _grace(facts, site, partition)
        where = f"jobs of partition {name} may be preempted ({mode})"
        if mode in ("OFF", "SUSPEND", "GANG") or not partition:
            if partition:
                yield ok(f"partition {name}: nothing is preempted by killing it (PreemptMode={mode})")
            continue
        if not warned:
            lost = "without the signal to save: what was done since the last saved state is computed again"
            words = " or ".join(f"{key}={word}" for key, word in _WARNED)
            yield note(f"{where} {lost}", f"ask the administrators for {words}, or choose another partition")
        elif grace == 0:
            yield note(f"{where} with GraceTime 0: told and killed at once", "ask the administrators for a GraceTime")
        elif grace < site.signal_seconds:
            text = f"and have {grace} s to save (GraceTime), against {site.signal_seconds} s before a time limit"
            fix = "a state that takes longer to write is lost, the one before it is kept"
            yield note(f"{where}, are told before, {text}", fix)
        else:
            yield ok(f"{where}, are told before, and have {grace} s to save")
        if mode == "CANCEL":
            yield note(f"partition {name} cancels preempted jobs instead of requeueing them: the launcher submits anew")


def _grace(facts: Facts, site: SlurmSite, partition: dict[str, str]) -> int:
    """Seconds between being told and being killed: of the qos where that is what preempts."""
    if facts.config.get("PreemptType") == "preempt/qos" and site.qos in facts.qos:
        from_qos = facts.qos[site.qos]["GraceTime"]
        hours, minutes, seconds = ([0, 0, 0] + [int(n) for n in from_qos.split(":") if n.isdigit()])[-3:]
        return hours * 3600 + minutes * 60 + seconds
    return int(partition.get("GraceTime") or 0)


def _limits(facts: Facts, site: SlurmSite) -> Iterator[Finding]:
    """Requeueing, ending, arrays."""
    if facts.config.get("JobRequeue") == "0":
        yield ok("jobs are not requeued by default (JobRequeue=0); ours ask for it themselves")
    else:
        yield ok("jobs of a dead node are requeued (JobRequeue=1)")
    wait = facts.seconds("KillWait")
    if wait is not None:
        yield ok(f"a cancelled job is gone after at most {wait} s (KillWait)")
    largest = facts.seconds("MaxArraySize")
    if largest is not None and site.array_size > largest:
        fix = (
            f"set `slurm: {{array_size: {largest}}}` in {_FILE}" if largest > 1 else "ask the administrators for arrays"
        )
        yield bad(f"an array may have {largest} jobs (MaxArraySize), array_size is {site.array_size}", fix)
    elif largest is not None:
        yield ok(f"arrays of {site.array_size} jobs are allowed (MaxArraySize {largest})")
