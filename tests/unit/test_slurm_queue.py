# SPDX-License-Identifier: Apache-2.0
"""What squeue and sacct print becomes states; a controller that does not answer is never taken for a lost job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sis.errors import SisError
from sis.launch.queue import ENDED, JobState, Unreachable
from sis.launch.slurm_queue import SlurmQueue, parse_names, parse_sacct, parse_squeue

# Printed by Slurm 22.05.8.
SQUEUE_ARRAY = """\
2|2|PENDING|0||JobArrayTaskLimit|
2|3|PENDING|0||ReqNodeNotAvail, UnavailableNodes:n[1-2]|
2|0|RUNNING|0|n1|None|
2|1|COMPLETING|0|n[1-2]|None|
"""
SQUEUE_ENDED = "5|N/A|FAILED|9|n1|JobLaunchFailure|\n"
SACCT = """\
2_0|COMPLETED|0:0|n1|None
2_1|CANCELLED by 0|0:15|n2|None
2_[2-3,7%2]|CANCELLED|0:0|None assigned|JobArrayTaskLimit
"""


def test_members_of_an_array_are_told_apart() -> None:
    assert parse_squeue(SQUEUE_ARRAY) == {
        2: JobState("PENDING", "JobArrayTaskLimit"),
        3: JobState("PENDING", "ReqNodeNotAvail, UnavailableNodes:n[1-2]"),
        0: JobState("RUNNING", nodes="n1"),
        1: JobState("COMPLETING", nodes="n[1-2]"),
    }


@pytest.mark.parametrize(
    ("status", "told"),
    [("0", "0:0"), ("9", "0:9"), ("256", "1:0"), ("35072", "137:0"), ("4021", "0:53"), ("0:9", "0:9"), ("?", "")],
)
def test_an_exit_status_reads_as_accounting_writes_it(status: str, told: str) -> None:
    text = SQUEUE_ENDED.replace("|9|", f"|{status}|")
    assert parse_squeue(text) == {0: JobState("FAILED", "JobLaunchFailure", "n1", told)}


def test_lines_that_are_no_jobs_are_passed_over() -> None:
    assert parse_squeue("CLUSTER: one\nslurm is slow today\n\n" + SQUEUE_ENDED).keys() == {0}
    assert parse_squeue("") == {} == parse_sacct("") == parse_sacct("no accounting today\n12.batch|FAILED|1:0|n1|x\n")


def test_accounting_knows_ends_and_ranges_of_members_that_never_began() -> None:
    never = JobState("CANCELLED", "JobArrayTaskLimit", exit_code="0:0")
    assert parse_sacct(SACCT) == {
        0: JobState("COMPLETED", nodes="n1", exit_code="0:0"),
        1: JobState("CANCELLED", "by 0", "n2", "0:15"),
        2: never,
        3: never,
        7: never,
    }
    assert parse_sacct("7|CANCELLED+|0:0|n1|None\n") == {0: JobState("CANCELLED", nodes="n1", exit_code="0:0")}


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "RESIZING"])
def test_accounting_is_not_believed_that_a_forgotten_job_lives(state: str) -> None:
    assert parse_sacct(f"7|{state}|0:0|n1|None\n") == {}


@pytest.mark.parametrize("state", sorted(ENDED))
def test_every_end_is_told_by_both_commands_and_found_by_none(state: str) -> None:
    assert parse_sacct(f"7|{state}|1:0|n1|None\n") == {0: JobState(state, nodes="n1", exit_code="1:0")}
    assert parse_squeue(f"7|N/A|{state}|256|n1|None|\n") == {0: JobState(state, nodes="n1", exit_code="1:0")}
    assert parse_names(f"7|{state}|sis-a", "sis-a") == []


def test_only_living_jobs_of_exactly_that_name_are_found() -> None:
    lines = ["3|RUNNING|sis-a", "12|PENDING|sis-a", "12|RUNNING|sis-a", "2|COMPLETING|sis-a", "1|FAILED|sis-a"]
    lines += ["4|RUNNING|sis-ab", "5|RUNNING|sis-a|b", "CLUSTER: one"]
    assert parse_names("\n".join(lines), "sis-a") == ["2", "3", "12"]
    assert parse_names("\n".join(lines), "sis-a|b") == ["5"]
    assert parse_names("", "sis-a") == []


# --- commands that stand in for Slurm's -----------------------------------------------------------------------


class Stubs:
    """Commands first on PATH; each writes down its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, out: str = "", err: str = "", code: int = 0, before: str = "") -> None:
        texts = [self.folder / f"{name}.{kind}" for kind in ("out", "err")]
        for path, text in zip(texts, (out, err), strict=True):
            path.write_text(text)
        said = f"echo {name} \"$@\" >> '{self.folder}/calls'"
        lines = ["#!/bin/bash", said, before, f"cat '{texts[0]}'", f"cat '{texts[1]}' >&2", f"exit {code}"]
        (self.folder / name).write_text("\n".join(lines) + "\n")
        (self.folder / name).chmod(0o755)

    @property
    def calls(self) -> str:
        return (self.folder / "calls").read_text() if (self.folder / "calls").exists() else ""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = Stubs(tmp_path)
    # No real Slurm may answer, whatever is installed here.
    for name in ("squeue", "sacct", "scancel", "scontrol"):
        found.add(name, err=f"{name} has not been told what to say", code=97)
    return found


DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
UNKNOWN = "slurm_load_jobs error: Invalid job id specified\n"


@pytest.mark.parametrize(
    ("err", "code"),
    [
        (DOWN, 1),
        ("slurm_load_jobs error: Socket timed out on send/recv operation\n", 1),
        ("slurm_load_jobs error: Slurm backup controller in standby mode\n", 1),
        ("squeue: error: s_p_parse_file: cannot stat file slurm.conf\n", 1),
        ("", 127),
    ],
)
def test_without_an_answer_nothing_is_known_and_accounting_is_not_asked(stubs: Stubs, err: str, code: int) -> None:
    stubs.add("squeue", err=err, code=code)
    stubs.add("sacct", out=SACCT)
    assert SlurmQueue().states("2") is None
    assert "sacct" not in stubs.calls


def test_a_command_that_hangs_is_no_answer(stubs: Stubs) -> None:
    stubs.add("squeue", out=SQUEUE_ARRAY, before="exec sleep 60")
    assert SlurmQueue(timeout=0.2).states("2") is None
    with pytest.raises(Unreachable, match=r"did not answer within 0.2 s"):
        SlurmQueue(timeout=0.2).find("x")


def test_warnings_do_not_hide_an_answer(stubs: Stubs) -> None:
    stubs.add("squeue", out=SQUEUE_ARRAY, err="squeue: error: something is odd\n")
    assert set(SlurmQueue().states("2") or {}) == {0, 1, 2, 3}
    assert stubs.calls.startswith("squeue -h -r -t all -j 2 -O")


@pytest.mark.parametrize(("out", "err", "code"), [("", UNKNOWN, 1), ("", "", 0)])
def test_accounting_is_asked_when_the_controller_has_forgotten(stubs: Stubs, out: str, err: str, code: int) -> None:
    stubs.add("squeue", out=out, err=err, code=code)
    stubs.add("sacct", out=SACCT)
    assert (SlurmQueue().states("2") or {})[1].state == "CANCELLED"


@pytest.mark.parametrize("err", ["Slurm accounting storage is disabled\n", "sacct: error: Connection refused\n"])
def test_a_forgotten_job_without_accounting_is_forgotten(stubs: Stubs, err: str) -> None:
    stubs.add("squeue", err=UNKNOWN, code=1)
    stubs.add("sacct", out=SACCT, err=err, code=1)
    assert SlurmQueue().states("2") == {}
    (stubs.folder / "sacct").unlink()
    assert SlurmQueue().states("2") == {}


def test_a_machine_that_knows_of_no_cluster_is_not_waited_for(stubs: Stubs) -> None:
    stubs.add("squeue", err="squeue: fatal: Could not establish a configuration source\n", code=1)
    with pytest.raises(SisError, match="know of no cluster") as caught:
        SlurmQueue().find("sis-a")
    assert not isinstance(caught.value, Unreachable)


def test_a_search_without_an_answer_is_refused(stubs: Stubs) -> None:
    stubs.add("squeue", err=DOWN, code=1)
    with pytest.raises(Unreachable, match=r"whether a job 'sis-a' runs already is unknown.*connect failure"):
        SlurmQueue().find("sis-a")
    stubs.add("squeue", out="7|PENDING|sis-a\n")
    assert SlurmQueue().find("sis-a") == ["7"]
    assert "--me" in stubs.calls, "jobs of others are not ours to follow"


def test_a_machine_without_slurm_is_told_so(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(stubs.folder / "empty"))
    with pytest.raises(SisError, match="no Slurm on this machine") as caught:
        SlurmQueue().find("sis-a")
    assert not isinstance(caught.value, Unreachable)


def test_personal_settings_do_not_reach_the_commands(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    # SQUEUE_PARTITION would hide jobs of all others, SCANCEL_INTERACTIVE would wait for an answer.
    for name in ("SQUEUE_PARTITION", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    stubs.add("squeue", before=f"env > '{stubs.folder}/environment'; exec echo '7|N/A|RUNNING|0|n1|None|'")
    assert SlurmQueue().states("7") == {0: JobState("RUNNING", nodes="n1")}
    lines = (stubs.folder / "environment").read_text().splitlines()
    assert "SLURM_CONF=mine" in lines
    assert not [line for line in lines if line.startswith(("SQUEUE_", "SACCT_", "SCANCEL_"))]


def test_ctrl_c_does_not_reach_the_commands(stubs: Stubs) -> None:
    # It is sent to the head's process group, while the head cancels its job.
    stubs.add("scancel", before=f"cut -d' ' -f5 /proc/$$/stat > '{stubs.folder}/group'")
    SlurmQueue().cancel("7")
    assert int((stubs.folder / "group").read_text()) != os.getpgrp()


def test_a_job_that_has_ended_already_needs_no_cancelling(stubs: Stubs) -> None:
    stubs.add("scancel")
    SlurmQueue().cancel("7")
    assert stubs.calls == "scancel 7\n"
    for words in ("Invalid job id specified", "Job/step already completing or completed"):
        stubs.add("scancel", err=f"scancel: error: Kill job error on job id 7: {words}\n", code=1)
        SlurmQueue().cancel("7")


def test_a_job_that_could_not_be_cancelled_or_released_is_named_with_the_command(stubs: Stubs) -> None:
    stubs.add("scancel", err="scancel: error: Kill job error on job id 7: Unable to contact slurm controller\n", code=1)
    with pytest.raises(Unreachable, match=r"job 7 was not cancelled.*scancel 7"):
        SlurmQueue().cancel("7")
    stubs.add("scontrol", err="slurm_suspend error: Unexpected message received\n", code=1)
    with pytest.raises(Unreachable, match=r"job 7 is held.*scontrol release 7"):
        SlurmQueue().release("7")


def test_a_job_that_was_cancelled_while_it_was_held_cannot_be_released(stubs: Stubs) -> None:
    stubs.add("scontrol", err="slurm_suspend error: Invalid job id specified\n", code=1)
    with pytest.raises(SisError, match="job 7 was gone before it could be released") as caught:
        SlurmQueue().release("7")
    assert not isinstance(caught.value, Unreachable)
