# SPDX-License-Identifier: Apache-2.0
"""A small Slurm that answers from recorded texts, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sis.config.cluster import Needs
from sis.launch.doctor_demand import Demand
from sis.launch.doctor_finding import Finding
from sis.launch.doctor_site import Answer, Facts, read_facts

CONFIG = """Configuration data as of 2026-11-21T15:49:56
AccountingStorageBackupHost = (null)
AccountingStorageType   = accounting_storage/none
ClusterName             = sistest3
JobRequeue              = 1
KillWait                = 5 sec
MaxArraySize            = 1001
MinJobAge               = 300 sec
PowerPlugin             =
PreemptType             = preempt/partition_prio
SlurmctldParameters     = enable_configless,preempt_send_user_signal

Slurmctld(primary) at vm is UP
"""
_OPEN = "AllowAccounts=ALL AllowQos=ALL"
PARTITIONS = f"""PartitionName=main {_OPEN} Default=YES GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP
PartitionName=low AllowAccounts=lab,guests Default=NO GraceTime=10 MaxTime=12:00:00 PreemptMode=REQUEUE State=UP
"""
_FIRST = "CPUTot=8 CPUEfctv=8 AvailableFeatures=a100,ib Gres=gpu:a100:4(S:0-1)"
NODES = f"""NodeName=n1 {_FIRST} RealMemory=16000 State=IDLE Partitions=main,low BootTime=2026-11-21T02:20:26
NodeName=n2 CPUTot=8 Gres=gpu:2 RealMemory=32000 MemSpecLimit=1000 State=MIXED+PLANNED Partitions=main
NodeName=n3 CPUTot=64 AvailableFeatures=(null) Gres=(null) RealMemory=250000 State=IDLE+DRAIN Partitions=main
"""
DBD = CONFIG.replace("accounting_storage/none", "accounting_storage/slurmdbd")


class Recorded:
    """Answers of Slurm's commands by their first words; the longest match counts."""

    def __init__(self, answers: dict[str, Answer | str]) -> None:
        usual: dict[str, Answer | str] = {
            "sbatch --version": "slurm-wlm 22.05.8\n",
            "scontrol show config": CONFIG,
            "scontrol show partition": PARTITIONS,
            "scontrol show node": NODES,
            "scontrol show hostnames n[1-2]": "n1\nn2\n",
        }
        self.answers = {**usual, **answers}
        self.asked: list[str] = []

    def __call__(self, *words: str, script: str | None = None) -> Answer:
        line = " ".join(words)
        self.asked.append(line)
        found = max((k for k in self.answers if line.startswith(k)), key=len, default="")
        answer = self.answers.get(found, Answer(1, "", f"not recorded: {line}"))
        return answer if isinstance(answer, Answer) else Answer(0, answer)


ACCOUNTED = {
    "scontrol show config": DBD,
    "sacctmgr -nP show assoc": "sistest3|lab||normal,long\nsistest3|guests||normal\nother|elsewhere||normal\n",
    "sacctmgr -nP show user": "lab\n",
    "sacctmgr -nP show qos": "normal||00:00:00\nlong|2-00:00:00|00:05:00\n",
    "sacct -n": "",
}


def facts(**answers: Answer | str) -> Facts:
    return read_facts(Recorded({name.replace("_", " "): text for name, text in answers.items()}))


def accounted(config: str = DBD) -> Facts:
    return read_facts(Recorded({**ACCOUNTED, "scontrol show config": config}))


def only(findings: Iterable[Finding], word: str) -> Finding:
    found = [f for f in findings if word in f.text]
    assert len(found) == 1, [f.line() for f in found]
    return found[0]


def demand(**needs: Any) -> Demand:
    usual = {"gpus": 1, "nodes": 1, "tasks": 1, "cpus": 1, "memory_gb": 8, "hours": 4}
    return Demand("train", Needs(**{**usual, **needs}), "sdm")
