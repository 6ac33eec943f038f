# SPDX-License-Identifier: Apache-2.0
"""`sis doctor --slurm` on recorded answers of Slurm: every fault of a site is one line that says what to do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from recorded_slurm import CONFIG, DBD, NODES, PARTITIONS, Recorded, accounted, demand, facts, only

from sis.cli import main
from sis.config.cluster import SlurmSite
from sis.errors import SisError
from sis.launch import doctor_site
from sis.launch.doctor import examine
from sis.launch.doctor_checks import check_site
from sis.launch.doctor_demand import Demand, check_demand, demands
from sis.launch.doctor_finding import Finding
from sis.launch.doctor_site import Answer, Facts, hours_of, parse_config, parse_gpus, read_facts
from sis.launch.queue import Unreachable
from sis.plan import load_plan


def checked(one: Demand, site: SlurmSite, of: Facts | None = None, excluded: tuple[str, ...] = ()) -> list[Finding]:
    return list(check_demand(one, site, of or facts(), frozenset(excluded)))


def test_configuration_is_read_with_empty_values() -> None:
    read = parse_config(CONFIG)
    assert (read["KillWait"], read["PowerPlugin"]) == ("5 sec", "")
    assert read["AccountingStorageType"] == "accounting_storage/none"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:2", {"": 2}),
        ("gpu:3090:4(S:0,1),gpu:a100:2,nic:1", {"3090": 4, "a100": 2}),
        ("gpu:1g.10gb:7", {"1g.10gb": 7}),
        ("(null)", {}),
        ("fpga:gpu_like:3", {}),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "hours"),
    [("UNLIMITED", math.inf), ("", math.inf), ("12:00:00", 12), ("2-06:30:00", 54.5), ("1-12", 36), ("30:00", 0.5)],
)
def test_time_limits(limit: str, hours: float) -> None:
    assert hours_of(limit) == hours


def test_a_node_is_usable_unless_it_is_away() -> None:
    assert [(n.name, n.usable) for n in facts().nodes] == [("n1", True), ("n2", True), ("n3", False)]
    assert facts().nodes[1].memory_mb == 31000
    for state, usable in (
        ("IDLE+CLOUD+POWERED_DOWN", True),
        ("DOWN*", False),
        ("IDLE*", False),
        ("MIXED+DRAIN", False),
    ):
        node = read_facts(Recorded({"scontrol show node": f"NodeName=n9 State={state} Gres=gpu:1"})).nodes[0]
        assert node.usable is usable, state


def test_a_good_site_without_accounting_has_a_note_and_nothing_bad() -> None:
    findings = list(check_site(facts(), SlurmSite(gpu_type="a100")))
    assert [f.text.split(":")[0] for f in findings if f.level != "ok"] == ["accounting is off"]
    assert "300 s (MinJobAge)" in only(findings, "accounting is off").text


def test_a_partition_that_is_not_there_is_named_with_the_nearest() -> None:
    found = only(check_site(facts(), SlurmSite(partition="mian")), "mian")
    assert found.level == "bad"
    assert "no partition mian" in found.line() and "did you mean 'main'" in found.line()


def test_partitions_that_take_no_jobs() -> None:
    down = facts(scontrol_show_partition=PARTITIONS.replace("State=UP", "State=DOWN"))
    assert only(check_site(down, SlurmSite()), "DOWN").level == "bad"
    drained = facts(scontrol_show_node=NODES.replace("IDLE ", "DOWN ").replace("MIXED+PLANNED", "DOWN"))
    assert only(check_site(drained, SlurmSite()), "0 of 3 nodes").level == "bad"
    none = facts(scontrol_show_partition=PARTITIONS.replace("Default=YES", "Default=NO"))
    assert only(check_site(none, SlurmSite()), "no default partition").level == "bad"
    closed = only(check_site(facts(), SlurmSite(partition="low", account="mine")), "takes no jobs")
    assert closed.level == "bad" and "account mine" in closed.text and "lab,guests" in closed.fix


def test_jobs_without_gpus_have_their_own_partition() -> None:
    lines = [f.text for f in check_site(facts(), SlurmSite(partition="low", cpu_partition="main", account="lab"))]
    assert sum(line.startswith("partition main: 2 of 3") for line in lines) == 1
    assert (
        sum(line.startswith("partition low: 1 of 1 nodes can take jobs, 4 GPUs, time limit 12") for line in lines) == 1
    )


@pytest.mark.parametrize(
    ("age", "levels"), [("0 sec", []), ("2 sec", ["bad", "bad"]), ("179 sec", ["bad"]), ("180 sec", ["ok"])]
)
def test_a_queue_that_forgets_too_soon(age: str, levels: list[str]) -> None:
    short = facts(scontrol_show_config=CONFIG.replace("300 sec", age))
    assert [f.level for f in check_site(short, SlurmSite()) if "look" in f.text] == levels


def test_gpus_of_several_types_make_different_bits() -> None:
    assert only(check_site(facts(), SlurmSite()), "several types (a100, untyped)").level == "note"
    assert not [f for f in check_site(facts(), SlurmSite(gpu_type="a100")) if "several types" in f.text]
    assert not [f for f in check_site(facts(), SlurmSite(partition="low")) if "several types" in f.text]


def test_with_accounting_a_short_memory_of_the_queue_is_a_note() -> None:
    short = accounted(DBD.replace("300 sec", "2 sec"))
    assert only(check_site(short, SlurmSite()), "may miss").level == "note"


def test_accounting_that_does_not_answer_is_told_from_none() -> None:
    dead = read_facts(Recorded({"scontrol show config": DBD, "sacctmgr": Answer(1, "", "Connection refused")}))
    assert only(check_site(dead, SlurmSite(account="lab")), "does not answer").level == "note"
    assert only(check_site(dead, SlurmSite(account="lab")), "account lab cannot be checked").level == "note"


def test_accounts_and_qualities_of_service() -> None:
    assert only(check_site(accounted(), SlurmSite()), "charged").text.endswith("account lab")
    wrong = only(check_site(accounted(), SlurmSite(account="labs")), "may not charge")
    assert wrong.level == "bad" and "did you mean 'lab'" in wrong.fix
    # An account of another cluster is none here.
    assert only(check_site(accounted(), SlurmSite(account="elsewhere")), "may not charge").level == "bad"
    assert only(check_site(accounted(), SlurmSite(qos="long")), "qos long").level == "ok"
    assert only(check_site(accounted(), SlurmSite(qos="lung")), "no qos lung").level == "bad"
    assert only(check_site(accounted(), SlurmSite(account="guests", qos="long")), "may not use").level == "bad"


def test_preemption_that_nobody_is_told_of() -> None:
    low = SlurmSite(partition="low", account="lab", signal_seconds=10)
    assert only(check_site(facts(), low), "are told before").level == "ok"
    less = only(check_site(facts(), low.model_copy(update={"signal_seconds": 120})), "are told before")
    assert less.level == "note" and "10 s to save" in less.text and "120 s before" in less.text
    silent = facts(scontrol_show_config=CONFIG.replace(",preempt_send_user_signal", ""))
    assert only(check_site(silent, low), "without the signal").level == "note"
    newer = (
        CONFIG.replace(",preempt_send_user_signal", "") + "PreemptParameters = send_user_signal,min_exempt_priority\n"
    )
    assert only(check_site(facts(scontrol_show_config=newer), low), "are told before").level == "ok"
    none = facts(scontrol_show_config=CONFIG.replace("preempt/partition_prio", "preempt/none"))
    assert only(check_site(none, low), "ever preempted").level == "ok"
    cancels = facts(scontrol_show_partition=PARTITIONS.replace("=REQUEUE", "=CANCEL"))
    assert only(check_site(cancels, low), "cancels preempted jobs").level == "note"


def test_preemption_by_quality_of_service_takes_its_grace() -> None:
    by_qos = accounted(DBD.replace("partition_prio", "qos"))
    site = SlurmSite(partition="low", account="lab", qos="long", signal_seconds=300)
    assert "300 s to save" in only(check_site(by_qos, site), "are told before").text


def test_arrays_larger_than_allowed() -> None:
    small = facts(scontrol_show_config=CONFIG.replace("1001", "100"))
    found = only(check_site(small, SlurmSite()), "MaxArraySize")
    assert found.level == "bad" and "{array_size: 100}" in found.fix


def test_demands_that_no_node_can_take() -> None:
    many = checked(demand(gpus=8), SlurmSite())[0]
    assert many.level == "bad" and "at most 4 GPUs (GRES: gpu:2, gpu:a100:4)" in many.text
    assert "cluster: {train: {gpus: 4}}" in many.fix
    kind = checked(demand(), SlurmSite(gpu_type="h100"))[0]
    assert kind.level == "bad" and "at most 0 GPUs of type h100" in kind.text and "gpu_type" in kind.fix
    assert "at most 244 GiB" in checked(demand(gpus=0, memory_gb=500), SlurmSite())[0].text
    assert "at most 64 CPUs" in checked(demand(gpus=0, cpus=9, tasks=8), SlurmSite())[0].text
    # Each is somewhere, no node has both.
    both = checked(demand(gpus=4, memory_gb=30), SlurmSite())[0]
    assert both.level == "bad" and "0 nodes of partition main have all of it at once" in both.text
    assert checked(demand(nodes=3), SlurmSite())[0].level == "bad"
    assert checked(demand(nodes=2), SlurmSite())[0].level == "ok"


def test_demands_against_limits_features_and_excluded_nodes() -> None:
    long = checked(demand(hours=24), SlurmSite(partition="low"))
    assert [f.level for f in long] == ["bad"] and "partition low allows 12 h a job" in long[0].text
    assert "{train: {hours: 12}}" in long[0].fix and "goes on in a further job" in long[0].fix
    assert "qos long allows 48 h" in checked(demand(hours=50), SlurmSite(qos="long"), accounted())[0].text
    assert checked(demand(), SlurmSite(constraint="a100&ib"))[0].text.endswith("1 nodes of partition main fit")
    assert checked(demand(), SlurmSite(constraint="v100"))[0].level == "bad"
    assert checked(demand(), SlurmSite(constraint="v100|a100"))[0].level == "ok"
    assert checked(demand(gpus=3), SlurmSite(), excluded=("n1",))[0].level == "bad"
    away = checked(demand(gpus=0, memory_gb=100), SlurmSite())[0]
    assert away.level == "note" and "n3 IDLE+DRAIN" in away.text


def test_demands_of_an_experiment_are_those_of_its_stages() -> None:
    found = {(d.stage, d.who): d for d in demands(load_plan(experiment="tiny"))}
    assert {stage for stage, _ in found} >= {"prepare", "train", "sample", "evaluate"}
    assert [d.stage for d in found.values()] == sorted(
        (d.stage for d in found.values()), key=["prepare", "train", "encode", "prior", "sample", "evaluate"].index
    )
    texts = [(d.stage, d.needs) for d in found.values()]
    assert len(texts) == len({(s, n.model_dump_json()) for s, n in texts})


def test_slurm_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "--slurm", "--experiment", "tiny"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    assert out.err.startswith("error: Slurm is not installed here: there is no `sbatch`")


def test_a_controller_that_does_not_answer_is_a_finding() -> None:
    silent = Answer(1, "", "slurm_load_ctl_conf error: Unable to contact slurm controller")
    away = Recorded({"scontrol show config": silent})
    with pytest.raises(Unreachable):
        read_facts(away)
    findings = list(examine(load_plan(experiment="tiny"), say=lambda _: None, ask=away))
    assert [f.level for f in findings] == ["bad"]
    assert "Unable to contact slurm controller" in findings[0].text and "\n" not in findings[0].line()


def test_commands_without_a_cluster_are_one_line() -> None:
    lost = Answer(1, "", "scontrol: error: fetch_config: DNS SRV lookup failed\nscontrol: fatal: Could not establish")
    with pytest.raises(SisError, match=r"they know of no cluster \(no slurm.conf\)"):
        read_facts(Recorded({"scontrol show config": lost}))


@pytest.mark.parametrize(("found", "notes"), [(Answer(0, "Slurmctld(primary) is UP"), 0), (Answer(1, ""), 1)])
def test_a_cluster_that_only_a_variable_leads_to(found: Answer, notes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "elsewhere")
    recorded = Recorded({"env -u SLURM_CONF scontrol ping": found})
    lines = [f.line() for f in examine(load_plan(experiment="tiny"), jobs=False, say=lambda _: None, ask=recorded)]
    assert sum(line.startswith("note Slurm's commands find the cluster by SLURM_CONF alone") for line in lines) == notes


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_site, "PATIENCE", 0.2)
    assert doctor_site.ask("sleep", "30").code == 124


def test_the_surrounding_jobs_variables_are_kept_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "here")
    out = doctor_site.ask("env").out
    assert "SLURM_CONF=here" in out and "SLURM_JOB_ID" not in out
