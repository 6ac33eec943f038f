# SPDX-License-Identifier: Apache-2.0
"""The end of a job in one line: what, in which log, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sis.config.cluster import Needs, SlurmSite
from sis.launch.diagnosis import diagnose, refused, stuck, tail, transient
from sis.launch.queue import JobState, Unreachable

NEEDS = Needs(gpus=1, nodes=1, cpus=2, memory_gb=16, hours=8)
FAILED = JobState("FAILED", "NonZeroExitCode", "n1", "1:0")

# Logs that Slurm 22.05.8 left: a step over its limit, a scancel, and a traceback with srun's line in between.
OVER_MEMORY = """\
loading
slurmstepd-n1: error: StepId=6.0 exceeded memory limit (433143808 > 104857600), being killed
slurmstepd-n1: error: Exceeded job memory limit
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-n1: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-21T15:50:14 ***
srun: error: n1: task 0: Killed
"""
CANCELLED = """\
step 7 of 100
srun: got SIGCONT
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-n1: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-21T16:01:37 ***
srun: forcing job termination
srun: error: n1: task 0: Killed
"""
TRACEBACK = """\
submitit INFO (2026-11-21 16:00:00,000) - Starting with JobEnvironment(job_id=1)
Traceback (most recent call last):
  File "<string>", line 2, in <module>
ZeroDivisionError: division by zero
srun: error: n1: task 0: Exited with exit code 1
"""
REFUSAL = (
    "warming up\nerror: no such dataset 'x' [data/x] - prepare it\nsrun: error: n1: task 0: Exited with exit code 2\n"
)


def said(tmp_path: Path, text: str, state: JobState | None = FAILED, needs: Needs = NEEDS) -> str:
    log = tmp_path / "7_0_log.err"
    log.write_text(text)
    message = str(diagnose("7", state, log, needs))
    assert "\n" not in message and f"[{log}]" in message
    return message


@pytest.mark.parametrize(
    "state",
    [
        JobState("FAILED", "NonZeroExitCode", "n1", "137:0"),
        JobState("FAILED", "JobLaunchFailure", "n1", "0:9"),
        JobState("CANCELLED", "", "n1"),
        JobState("OUT_OF_MEMORY", "OutOfMemory", "n1", "0:125"),
    ],
)
def test_a_job_over_its_memory_is_told_by_its_log_whatever_slurm_calls_it(tmp_path: Path, state: JobState) -> None:
    message = said(tmp_path, OVER_MEMORY, state)
    assert message.startswith("job 7 (n1) ran out of memory: asked for 16 GiB [")
    assert "raise memory_gb" in message


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=3.batch. Some of your processes",
        "MemoryError",
        "OSError: [Errno 12] Cannot allocate memory",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_every_word_for_too_little_memory_is_known(tmp_path: Path, line: str) -> None:
    assert "(n1) ran out of memory: asked for 16 GiB" in said(tmp_path, line)


def test_a_job_out_of_memory_without_a_log_is_told_by_its_state(tmp_path: Path) -> None:
    ended = JobState("OUT_OF_MEMORY", "OutOfMemory", "n1", "0:125")
    assert "job 7 (n1) ran out of memory: asked for 16 GiB" in str(diagnose("7", ended, None, NEEDS))
    assert "asked for no certain amount" in str(diagnose("7", ended, None, Needs()))


def test_a_gpu_out_of_memory_is_not_the_nodes_memory(tmp_path: Path) -> None:
    message = said(tmp_path, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    assert "ran out of GPU memory" in message and "memory_gb" not in message


@pytest.mark.parametrize("code", ["137:0", "0:9"])
def test_a_kill_without_a_reason_is_most_likely_memory(tmp_path: Path, code: str) -> None:
    message = said(tmp_path, "step 1\n", JobState("FAILED", "", "n1", code))
    assert "was killed (signal 9), most likely for its memory: asked for 16 GiB" in message


@pytest.mark.parametrize("line", ["OSError: [Errno 28] No space left on device: 'a.tmp'", "Disk quota exceeded"])
def test_a_full_disk_is_named(tmp_path: Path, line: str) -> None:
    message = said(tmp_path, f"{line}\n")
    assert f"found no space left: {line}" in message and "make room" in message


def test_a_time_limit_says_how_long_it_was(tmp_path: Path) -> None:
    message = said(tmp_path, "step 7\n", JobState("TIMEOUT", "TimeLimit", "n1", "0:15"))
    assert "job 7 (n1) reached its time limit of 8 h" in message and "raise hours" in message


def test_a_cancelled_job_that_was_slow_to_end_was_not_out_of_memory(tmp_path: Path) -> None:
    message = said(tmp_path, CANCELLED, JobState("CANCELLED", "by 0", "n1", "0:15"))
    assert message.startswith("job 7 (n1) was cancelled by root [") and "memory" not in message


@pytest.mark.parametrize(("reason", "words"), [("by 4294967", " by user 4294967 ["), ("JobHeldUser", " ["), ("", " [")])
def test_why_a_cancelled_job_waited_before_is_not_told(tmp_path: Path, reason: str, words: str) -> None:
    assert f"job 7 was cancelled{words}" in said(tmp_path, "", JobState("CANCELLED", reason))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("NODE_FAIL", "ended because its node failed"),
        ("BOOT_FAIL", "ended because its node did not boot"),
        ("PREEMPTED", "was preempted and not queued again"),
        ("DEADLINE", "passed its deadline"),
    ],
)
def test_an_end_that_slurm_names_is_told(tmp_path: Path, state: str, words: str) -> None:
    message = said(tmp_path, TRACEBACK, JobState(state, "", "n1"))
    assert f"job 7 (n1) {words}" in message and "start the same command again" in message


def test_our_own_refusal_is_passed_on(tmp_path: Path) -> None:
    message = said(tmp_path, REFUSAL, JobState("FAILED", "NonZeroExitCode", "n1", "2:0"))
    assert "job 7 (n1) failed (exit code 2): no such dataset 'x' [data/x] - prepare it" in message


def test_a_traceback_is_told_by_its_last_line(tmp_path: Path) -> None:
    assert "failed (exit code 1): ZeroDivisionError: division by zero" in said(tmp_path, TRACEBACK)
    assert "failed (signal 11): ZeroDivisionError" in said(tmp_path, TRACEBACK, JobState("FAILED", "", "n1", "0:11"))


def test_slurms_last_line_is_better_than_none(tmp_path: Path) -> None:
    line = "srun: error: Unable to create step for job 7: Invalid account"
    assert f"failed (exit code 1): {line}" in said(tmp_path, line + "\n")


@pytest.mark.parametrize("log", [None, Path("absent") / "7.err"])
def test_a_failure_without_a_log_asks_about_the_folder(log: Path | None) -> None:
    message = str(diagnose("7", JobState("FAILED", "", "n2", "1:0"), log, NEEDS))
    assert "job 7 (n2) failed (exit code 1) and left no log: is the folder visible on node n2?" in message
    assert "on its node?" in str(diagnose("7", JobState("FAILED"), log, NEEDS))


def test_a_log_that_could_not_be_opened_is_known_by_slurms_code(tmp_path: Path) -> None:
    message = said(tmp_path, "", JobState("FAILED", "JobLaunchFailure", "n2", "0:53"))
    assert "job 7 (n2) could not open its log: is the folder visible on node n2?" in message
    assert "file system that all nodes share" in message
    # What is in the log then is of an earlier life, on a node that saw the folder.
    assert "could not open its log" in said(tmp_path, "step 7\n", JobState("FAILED", "JobLaunchFailure", "n2", "0:53"))


def test_a_job_that_nobody_remembers_vanished(tmp_path: Path) -> None:
    assert "job 7 vanished from the queue without a word" in str(diagnose("7", None, None, NEEDS))
    assert "job 7 vanished from the queue; its last words: step 9" in said(tmp_path, "step 8\nstep 9\n", None)


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (" DUE TO TIME LIMIT", "reached its time limit"),
        (" DUE TO PREEMPTION", "was preempted"),
        (" DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS", "its node failed"),
        ("", "was cancelled"),
    ],
)
def test_what_slurm_wrote_last_tells_of_a_job_that_nobody_remembers(tmp_path: Path, why: str, words: str) -> None:
    line = f"slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-21T16:01:37{why} ***\n"
    assert words in said(tmp_path, "step 1\n" + line + "srun: forcing job termination\n", None)
    # An earlier life of a job that was queued again ended like that, the last one did not.
    assert "vanished from the queue; its last words: step 2" in said(tmp_path, line + "step 2\n", None)


def test_only_ends_of_the_cluster_are_cured_by_a_new_submission() -> None:
    curable = {"NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "PREEMPTED"}
    states = curable | {"FAILED", "CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "COMPLETED"}
    assert {state for state in states if transient(JobState(state))} == curable


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert tail(log, 2) == "line 99998\nline 99999"
    log.write_bytes(b"start\r\n 1%\r 50%\r100%\nh\xff\n\n")
    assert tail(log) == "start\n100%\nh\ufffd"


# --- refusals of sbatch: its words under Slurm 22.05.8 ---------------------------------------------------------

SITE = SlurmSite(partition="gpus", account="me", qos="fast", gpu_type="a100", constraint="ib", exclude="n9")
FAILED_SUBMISSION = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        ("Invalid partition name specified", "there is no partition 'gpus'", "sinfo -s"),
        ("Invalid account or account/partition combination specified", "account 'me' does not exist or", "sacctmgr"),
        ("Invalid qos specification", "there is no quality of service 'fast'", "sacctmgr"),
        ("Invalid generic resource (gres) specification", "no such GPUs (gpu_type: a100)", "sinfo -o %G"),
        ("Requested node configuration is not available", "no node can give what was asked for", "lower gpus"),
        ("Memory required by task is not available", "no node has as much memory", "lower memory_gb"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "over the limit of part", "lower hours"),
        ("Invalid job array specification", "the array is larger", "lower array_size"),
        ("Invalid feature specification", "no node has feature 'ib'", "correct constraint"),
        ("Invalid node name specified", "does not exist (exclude: n9)", "correct exclude"),
        ("Access/permission denied", "may not submit", "ask whoever runs"),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "the account's limits do not allow this job now",
            "wait until others have ended",
        ),
    ],
)
def test_a_refusal_names_the_setting(words: str, what: str, fix: str) -> None:
    message = str(refused(f"{FAILED_SUBMISSION}{words}\n", SITE))
    assert message.startswith("Slurm refused the job: ") and what in message and fix in message
    assert f"({words})" in message and "config/config.yaml" in message


@pytest.mark.parametrize(
    "words",
    ["Unable to contact slurm controller (connect failure)", "Socket timed out on send/recv operation"],
)
def test_an_absent_controller_has_not_refused(words: str) -> None:
    error = refused(f"{FAILED_SUBMISSION}{words}\n", SITE)
    assert isinstance(error, Unreachable) and f"controller does not answer ({words})" in str(error)
    assert not isinstance(refused(f"{FAILED_SUBMISSION}Invalid qos specification\n", SITE), Unreachable)


def test_of_several_lines_the_telling_one_decides() -> None:
    text = (
        f"sbatch: error: Memory specification can not be satisfied\n{FAILED_SUBMISSION}Requested node configuration\n"
    )
    assert "no node has as much memory" in str(refused(text, SITE))
    limits = (
        f"sbatch: error: AssocMaxSubmitJobLimit\n{FAILED_SUBMISSION}Job violates accounting/QOS policy (time limits)"
    )
    assert "the account's limits do not allow" in str(refused(limits, SITE))


def test_an_option_that_sbatch_does_not_know_is_blamed_on_extra() -> None:
    message = str(refused("sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information\n", SITE))
    assert "does not understand an option (unrecognized option '--bogus')" in message and "correct extra" in message
    assert "correct extra" in str(refused("sbatch: error: Invalid --mem specification\n", SITE))


def test_words_around_those_of_sbatch_do_not_matter() -> None:
    text = (
        f"Command '['sbatch', '--partition=gpus', 'Invalid qos']' failed\n{FAILED_SUBMISSION}Invalid partition name\n"
    )
    assert "there is no partition 'gpus'" in str(refused(text, SITE))


def test_an_unknown_refusal_is_quoted() -> None:
    assert "Slurm refused the job: the moon is full [" in str(refused(f"{FAILED_SUBMISSION}the moon is full\n", SITE))
    assert "Slurm refused the job: no sbatch here [" in str(refused("no sbatch here\n", SITE))
    assert "Slurm refused the job: no words [" in str(refused("", SITE))


def test_settings_that_are_empty_are_called_the_default() -> None:
    message = str(refused(f"{FAILED_SUBMISSION}Invalid account or account/partition combination\n", SlurmSite()))
    assert "default account does not exist or may not use default partition" in message


# --- reasons why a job waits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        *["", "Resources", "Priority", "BeginTime", "Dependency", "JobArrayTaskLimit", "Licenses", "NodeDown"],
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        *["QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser", "AssocMaxJobsLimit", "AssocGrpGRES", "QOSGrpCpuLimit"],
        *["AssocGrpCPURunMinutesLimit", "QOSGrpGRESRunMinutes"],
    ],
)
def test_waiting_for_others_is_not_being_stuck(reason: str) -> None:
    assert stuck(JobState("PENDING", reason)) == ""


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("JobHeldUser", "held by its user"),
        ("JobHeldAdmin", "held by an administrator"),
        ("launch failed requeued held", "its start failed on a node"),
        ("job requeued in held state", "is held: scontrol release"),
        ("PartitionTimeLimit", "lower hours"),
        ("PartitionNodeLimit", "lower nodes"),
        ("PartitionConfig", "more than its partition has or allows"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "the nodes it needs are not available (ReqNodeNotAvail, Unav"),
        ("BadConstraints", "no node fulfils"),
        ("DependencyNeverSatisfied", "a job it waits for has failed"),
        ("AccountNotAllowed", "its account may not use this partition"),
        ("InvalidQOS", "quality of service"),
        ("AssocMaxWallDurationPerJobLimit", "may not ask for so much time"),
        ("AssocMaxCpuPerJobLimit", "one job may not ask for so much"),
        ("QOSMaxGRESPerJob", "one job may not ask for so much"),
        ("AssocGrpCPUMinutesLimit", "budget of its account is used up"),
        ("QOSGrpWallLimit", "budget of its account is used up"),
        ("QOSMaxWallDurationPerJobLimit", "may not ask for so much time"),
        ("AssociationTimeLimit", "may not ask for so much time"),
        ("QOSGrpGRESMinutes", "budget of its account is used up"),
    ],
)
def test_a_job_that_will_never_start_by_itself_says_why(reason: str, words: str) -> None:
    told = stuck(JobState("PENDING", reason))
    assert words in told and reason.split(",")[0] in told


def test_a_job_that_runs_is_not_stuck() -> None:
    assert stuck(JobState("RUNNING", "JobHeldUser")) == ""
    assert stuck(JobState("SPECIAL_EXIT", "")) == "Slurm holds it (SPECIAL_EXIT)"
