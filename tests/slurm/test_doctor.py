# SPDX-License-Identifier: Apache-2.0
"""`sis doctor --slurm` on a real Slurm: what is good, and each fault of a site as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_control import Cluster, until
from project_copy import Project, copy_project

pytestmark = pytest.mark.slurm


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> Project:
    # Jobs of the nodes read and write here; pytest's own folder is for its user alone, who is the jobs' user too.
    return copy_project(tmp_path)


def doctor(project: Project, cluster: Cluster, *options: str, **site: object) -> tuple[int, list[str], str]:
    """Exit code, findings and progress under these settings of the site."""
    lines = [f"  {key}: {value}" for key, value in site.items()]
    settings = project.folder / "config" / "config.yaml"
    settings.write_text("\n".join(["experiment: tiny", "slurm:", "  signal_seconds: 10", *lines, ""]))
    surrounding = {**project.environment(), **cluster.environment}
    done = subprocess.run(
        [sys.executable, "-m", "sis", "doctor", "--slurm", *options],
        cwd=project.folder, env={**surrounding, "PYTHONPATH": str(project.folder), "PATH": os.environ["PATH"]},
        text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


def only(lines: list[str], word: str) -> str:
    found = [line for line in lines if word in line]
    assert len(found) == 1, lines
    return found[0]


def test_a_good_site_without_accounting(project: Project, cluster: Cluster) -> None:
    code, lines, progress = doctor(project, cluster)
    assert code == 0, lines
    assert {line[:5] for line in lines} == {"ok   ", "note "}
    assert only(lines, "accounting").startswith("note accounting is off")
    assert only(lines, "SLURM_CONF").startswith("note ")
    assert "starts on n1, n2 (job " in only(lines, "of this environment starts")
    assert [line[:3] for line in lines if "flock: n" in line] == ["ok ", "ok "]
    assert only(lines, "shared folder").startswith("ok ")
    assert "tries 2 nodes of partition main" in progress
    # Nothing is left: no folder, and the job has ended by itself.
    assert not list((project.folder / "artefacts").iterdir())
    job = progress.split()[1]
    until(lambda: cluster.jobs()[job] != "COMPLETING", 60, "the job is over")
    assert cluster.jobs()[job] == "COMPLETED"


def test_looking_only_submits_nothing(project: Project, cluster: Cluster) -> None:
    before = set(cluster.jobs())
    code, lines, progress = doctor(project, cluster, "--no-jobs")
    assert code == 0 and progress == ""
    assert not any("flock" in line for line in lines)
    assert set(cluster.jobs()) == before


def test_a_wrong_partition(project: Project, cluster: Cluster) -> None:
    code, lines, _ = doctor(project, cluster, partition="mian")
    assert code == 2
    assert only(lines, "bad ") == (
        "bad  there is no partition mian - correct `slurm:` in config/config.yaml: did you mean 'main'?"
    )


def test_gpus_that_no_node_has(project: Project, cluster: Cluster) -> None:
    experiment = project.folder / "config" / "experiments" / "tiny.yaml"
    experiment.write_text(experiment.read_text() + "\ncluster:\n  train: {gpus: 1}\n  sample: {gpus: 9}\n")
    code, lines, _ = doctor(project, cluster, "--no-jobs")
    assert code == 2
    assert "at most 4 GPUs (GRES: gpu:4)" in only(lines, "bad ")
    assert "2 nodes of partition main fit" in only(lines, "train (")
    # A type that is configured nowhere: nodes cannot be tried with it either.
    code, lines, _ = doctor(project, cluster, gpu_type="h100")
    assert code == 2
    assert {line.split(":")[0].split(" (")[0] for line in lines if line.startswith("bad")} == {
        "bad  train",
        "bad  sample",
    }


def test_gpus_are_handed_out(project: Project, cluster: Cluster) -> None:
    experiment = project.folder / "config" / "experiments" / "tiny.yaml"
    experiment.write_text(experiment.read_text() + "\ncluster:\n  train: {gpus: 1}\n")
    code, lines, _ = doctor(project, cluster)
    assert code == 0, lines
    assert "n1 CUDA_VISIBLE_DEVICES=0, n2 CUDA_VISIBLE_DEVICES=0" in only(lines, "GPUs handed out")


def test_preemption_and_its_grace(project: Project, cluster: Cluster) -> None:
    _, lines, _ = doctor(project, cluster, "--no-jobs", partition="low")
    assert only(lines, "preempted").endswith("(REQUEUE), are told before, and have 10 s to save")


def test_a_partition_that_is_down(project: Project, cluster: Cluster) -> None:
    cluster.run("scontrol", "update", "partitionname=low", "state=down")
    try:
        code, lines, _ = doctor(project, cluster, "--no-jobs", partition="low")
    finally:
        cluster.run("scontrol", "update", "partitionname=low", "state=up")
    assert code == 2 and "partition low is DOWN" in only(lines, "bad ")


def test_nodes_that_are_busy(project: Project, cluster: Cluster) -> None:
    cluster.run("sbatch", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 100")
    code, lines, _ = doctor(project, cluster, "--wait", "3")
    assert code == 0
    assert "is still PENDING (Resources): no node was tried" in only(lines, "PENDING")
    assert sorted(cluster.jobs("PENDING,RUNNING").values()) == ["RUNNING"]


def test_a_shell_that_does_not_prepare_itself(project: Project, cluster: Cluster) -> None:
    code, lines, _ = doctor(project, cluster, setup="['set -e', 'echo no such module: cuda/99 >&2', 'exit 3']")
    assert code == 2
    assert "ended as FAILED on n" in only(lines, "bad ") and "no such module: cuda/99" in only(lines, "bad ")


@pytest.mark.parametrize("node", ["n1", "n2"])  # the first one also writes the job's log
def test_a_node_that_does_not_see_the_folder(project: Project, cluster: Cluster, node: str) -> None:
    with cluster.blind(node, project.folder):
        code, lines, _ = doctor(project, cluster)
    assert code == 2
    assert node in only(lines, "bad ") and f"see {project.folder / 'artefacts'}" in only(lines, "bad ")


def test_a_controller_that_is_away(project: Project, cluster: Cluster) -> None:
    with cluster.without_controller():
        code, lines, _ = doctor(project, cluster)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith("bad  Slurm's controller does not answer: ")


@pytest.mark.slow
def test_accounts_of_a_site_with_accounting(project: Project, cluster: Cluster) -> None:
    cluster.start("--accounting")
    code, lines, _ = doctor(project, cluster, "--no-jobs")
    assert code == 0
    assert only(lines, "accounting").startswith("ok   accounting is on")
    assert only(lines, "charged") == "ok   jobs are charged to account root"
    code, lines, _ = doctor(project, cluster, "--no-jobs", account="tset", qos="urgent")
    assert code == 2
    assert "did you mean 'test'?" in only(lines, "may not charge account tset")
    assert only(lines, "no qos urgent").startswith("bad ")
