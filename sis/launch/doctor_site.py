# SPDX-License-Identifier: Apache-2.0
"""Asks Slurm what it is: its configuration, partitions, nodes and accounts, as plain facts."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from sis.errors import SisError
from sis.launch.queue import Unreachable
from sis.launch.slurm_queue import need_cluster

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "srun")
#: Seconds until a command of Slurm that says nothing is given up.
PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str = ""

    @property
    def text(self) -> str:
        """Both streams in one line, for messages."""
        return " ".join(f"{self.err} {self.out}".split())


Ask = Callable[..., Answer]


def ask(*words: str, script: str | None = None) -> Answer:
    """Run a command of Slurm; code 127 when it is not there, 124 when it says nothing for half a minute.

    The surrounding job's variables are kept from it: options of one job are none of the next.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(
            words, input=script or "", capture_output=True, text=True, timeout=PATIENCE, check=False, env=kept
        )
    except FileNotFoundError:
        return Answer(127, "", f"{words[0]}: not installed")
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{words[0]} did not answer within {PATIENCE:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Node:
    """A node. memory_mb: what jobs may have; gpus: number by type ('' where types are not configured)."""

    name: str
    state: str
    partitions: tuple[str, ...]
    cpus: int
    memory_mb: int
    gpus: dict[str, int]
    features: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether jobs can start on it, now or after others; a node that is switched off wakes up."""
        parts = set(re.split(r"[+*~#!%$@^-]+", self.state))
        return not parts & {"DOWN", "DRAIN", "DRAINING", "DRAINED", "FAIL", "FUTURE", "UNKNOWN", "NOT_RESPONDING"} and (
            not self.state.endswith("*")
        )


@dataclass(frozen=True)
class Association:
    """An account that the user may charge. partition: empty means all."""

    account: str
    partition: str
    qos: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What this Slurm is.

    config: of `scontrol show config`. partitions: fields by name. accounting: "" when it is off, else whether it
    answers, "on" or "dead".
    """

    version: str
    config: dict[str, str]
    partitions: dict[str, dict[str, str]]
    nodes: tuple[Node, ...]
    accounting: str = ""
    default_account: str = ""
    associations: tuple[Association, ...] = ()
    qos: dict[str, dict[str, str]] = field(default_factory=dict)

    def seconds(self, key: str) -> int | None:
        """A number of the configuration, as `KillWait = 30 sec`; None where it is missing or no number."""
        found = re.match(r"\d+", self.config.get(key, ""))
        return int(found[0]) if found else None

    @property
    def default_partition(self) -> str:
        """Where jobs go that name none; empty: there is no such partition."""
        return next((n for n, p in self.partitions.items() if p.get("Default") == "YES"), "")


def read_facts(ask: Ask = ask) -> Facts:
    """Everything that the checks look at.

    Raises SisError where Slurm is not installed or knows of no cluster, Unreachable where its controller is silent.
    """
    version = ask("sbatch", "--version")
    if version.code == 127:
        fix = "run this on a login node of the cluster (module load slurm?), or use --launcher local without one"
        raise SisError("Slurm is not installed here: there is no `sbatch`", fix=fix)
    config = _answered(ask("scontrol", "show", "config"))
    partitions = (_fields(line) for line in _answered(ask("scontrol", "show", "partition", "-o")).splitlines())
    nodes = (_fields(line) for line in _answered(ask("scontrol", "show", "node", "-o")).splitlines())
    facts = Facts(
        version=version.out.split()[-1] if version.out.split() else "?",
        config=parse_config(config),
        partitions={p["PartitionName"]: p for p in partitions if "PartitionName" in p},
        nodes=tuple(parse_node(n) for n in nodes if "NodeName" in n),
    )
    return _with_accounting(facts, ask)


def parse_config(text: str) -> dict[str, str]:
    """`Key = value` lines of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if " = " in line or line.rstrip().endswith("="))
    return {key.strip(): value.strip() for key, value in pairs}


def parse_node(fields: dict[str, str]) -> Node:
    """A line of `scontrol show node -o`."""
    partitions = fields.get("Partitions", "")
    features = fields.get("AvailableFeatures", "")
    return Node(
        name=fields["NodeName"],
        state=fields.get("State", "UNKNOWN"),
        partitions=tuple(partitions.split(",")) if partitions else (),
        cpus=int(fields.get("CPUEfctv") or fields.get("CPUTot") or 0),
        memory_mb=int(fields.get("RealMemory") or 0) - int(fields.get("MemSpecLimit") or 0),
        gpus=parse_gpus(fields.get("Gres", "")),
        features=() if features in ("", "(null)") else tuple(features.split(",")),
    )


def parse_gpus(gres: str) -> dict[str, int]:
    """Number of GPUs by type of `gpu:a100:4(S:0-1),gpu:2`."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"\bgpu:(?:([^:(),]+):)?(\d+)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def hours_of(limit: str) -> float:
    """Hours of Slurm's time `1-00:00:00`, `30:00` (minutes) or `60`; infinite where there is no limit."""
    if limit in ("", "UNLIMITED", "INFINITE", "NONE", "N/A", "Partition_Limit"):
        return math.inf
    days, _, rest = limit.rpartition("-")
    numbers = [int(n) for n in rest.split(":")]
    if days:
        numbers = [*numbers, 0, 0][:3]
        return int(days) * 24 + numbers[0] + numbers[1] / 60 + numbers[2] / 3600
    if len(numbers) == 3:
        return numbers[0] + numbers[1] / 60 + numbers[2] / 3600
    return numbers[0] / 60 + (numbers[1] / 3600 if len(numbers) == 2 else 0)


def _answered(answer: Answer) -> str:
    if answer.code:
        need_cluster(answer.err)
        what = f"Slurm's controller does not answer: {answer.text}"
        raise Unreachable(what, fix="try again later (scontrol ping), or ask the site's administrators")
    return answer.out


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"([A-Za-z_/]+)=(\S*)", line))


def _with_accounting(facts: Facts, ask: Ask) -> Facts:
    if not facts.config.get("AccountingStorageType", "").endswith("slurmdbd"):
        return facts
    user = getpass.getuser()
    listing = ask("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Cluster,Account,Partition,QOS")
    if listing.code or ask("sacct", "-n", "-X", "-P", "-j", "1", "-o", "State").code:
        return Facts(facts.version, facts.config, facts.partitions, facts.nodes, accounting="dead")
    rows = [line.split("|") for line in listing.out.splitlines() if line.count("|") >= 3]
    mine = [r for r in rows if r[0] == facts.config.get("ClusterName", r[0])]
    default = ask("sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount").out.strip().splitlines()
    levels = ask("sacctmgr", "-nP", "show", "qos", "format=Name,MaxWall,GraceTime").out.splitlines()
    return Facts(
        version=facts.version, config=facts.config, partitions=facts.partitions, nodes=facts.nodes, accounting="on",
        default_account=default[0] if default else "",
        associations=tuple(Association(r[1], r[2], tuple(q for q in r[3].split(",") if q)) for r in mine),
        qos={n: {"MaxWall": w, "GraceTime": g} for n, w, g in (line.split("|")[:3] for line in levels if "|" in line)},
    )  # fmt: skip


def installed() -> list[str]:
    """Which of Slurm's commands that are needed are missing."""
    return [name for name in COMMANDS if shutil.which(name) is None]
