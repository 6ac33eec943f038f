# SPDX-License-Identifier: Apache-2.0
"""Trainings that are interrupted in every way a cluster knows end with the weights of one that was left in peace."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from cluster_control import until
from launching import STEPS, Bench

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def alive(bench: Bench, job: str) -> bool:
    states = [s for i, s in bench.cluster.jobs().items() if i.split("_")[0] == job]
    return any(s in ("PENDING", "RUNNING", "COMPLETING") for s in states)


def test_preempted_twice_timed_out_and_cancelled(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 15)
    job = bench.job("model")
    for times, reached in ((2, 40), (3, 65)):
        bench.cluster.preempt(job)
        bench.cluster.hurry(job)
        bench.starts("model", times)
        bench.reaches("model", reached)
    # A shorter limit on the running job: Slurm signals it a minute before the limit, that is when it looks next. The
    # training stands still meanwhile, or it would be over; with the signal Slurm sends SIGCONT.
    os.kill(bench.process("model"), signal.SIGSTOP)
    bench.cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=1")
    until(lambda: bench.cluster.jobs()[job] == "PENDING", 90, "the job that timed out is queued again")
    bench.cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=120")
    bench.cluster.hurry(job)
    bench.starts("model", 4)
    bench.reaches("model", 90)
    assert head.poll() is None and bench.job("model") == job
    bench.cluster.run("scancel", job)
    assert bench.ended(head) == 2
    last = bench.said(head).strip().splitlines()[-1]
    assert last.startswith(f"error: job {job}") and "was cancelled" in last and "/launch/1/" in last
    assert not (bench.folder / "model/model.safetensors").exists()
    again = bench.run(bench.training())
    assert "submitted job" in again.stdout
    assert bench.weights("model") == peace.weights("model")
    bench.never_two("model")
    # scancel's SIGTERM saves a state, too.
    log = next((bench.launch("model") / "2").glob("*_log.err")).read_text()
    assert int(re.search(r"resumes at (\d+)/", log)[1]) >= 90  # pyright: ignore[reportOptionalSubscript]
    starts = [(e["submission"], e["restart"]) for e in bench.events("model") if e["event"] == "start"]
    assert starts == [("1", "0"), ("1", "1"), ("1", "2"), ("1", "3"), ("2", "0")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["sigkill", "sighup"])
def test_a_head_that_dies_leaves_its_job_to_the_next(bench: Bench, peace: Bench, number: signal.Signals) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 10)
    job = bench.job("model")
    bench.kill(head, number)
    assert alive(bench, job)
    again = bench.run(bench.training())
    assert f"following job {job}" in again.stdout and "submitted" not in again.stdout
    assert bench.weights("model") == peace.weights("model")
    assert [event["event"] for event in bench.events("model")] == ["start", "end"]


def test_ctrl_c_cancels_the_job_and_the_next_head_goes_on(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 10)
    job = bench.job("model")
    assert bench.kill(head, signal.SIGINT) == 130
    assert not alive(bench, job) and not (bench.folder / "model/model.safetensors").exists()
    again = bench.run(bench.training())
    assert bench.job("model") != job and "submitted" in again.stdout
    assert bench.weights("model") == peace.weights("model")
    bench.never_two("model")


def test_a_job_whose_head_died_before_writing_it_down_is_not_left_beside_a_second(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 5)
    job = bench.job("model")
    bench.kill(head, signal.SIGKILL)
    (bench.launch("model") / "job.json").unlink()
    again = bench.run(bench.training())
    assert f"cancelling job {job}" in again.stdout and "submitted" in again.stdout
    assert bench.weights("model") == peace.weights("model")
    bench.never_two("model")


def test_a_finished_model_comes_back_when_the_workflow_deletes_it(bench: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 5)
    job = bench.job("model")
    bench.kill(head, signal.SIGKILL)
    until(lambda: not alive(bench, job), 120, "the job ends without a head")
    before = bench.weights("model")
    # What Snakemake does with the declared output of a rule that it did not see finish.
    (bench.folder / "model/model.safetensors").unlink()
    again = bench.run(bench.training())
    assert "has finished it" in again.stdout and "submitted" not in again.stdout
    assert bench.weights("model") == before


def test_a_second_head_waits_for_the_first(bench: Bench) -> None:
    first = bench.start(bench.training())
    bench.reaches("model", 5)
    second = bench.start(bench.training())
    until(lambda: "waiting for it" in bench.said(second), 60, "the second head says that it waits")
    assert bench.ended(first) == 0 and bench.ended(second) == 0
    assert [event["event"] for event in bench.events("model")] == ["start", "end"]


def test_a_job_of_other_parameters_is_refused_and_left_alone(bench: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 5)
    job = bench.job("model")
    bench.kill(head, signal.SIGHUP)
    done = bench.run([*bench.training(), "--resume-other"], check=False)
    assert done.returncode == 2
    assert f"error: job {job} still makes this of other inputs" in done.stdout and f"scancel {job}" in done.stdout
    assert alive(bench, job)


def test_states_are_written_between_steps_and_never_in_the_handler(bench: Bench) -> None:
    head = bench.start(bench.training())
    bench.reaches("model", 10)
    job = bench.job("model")
    bench.cluster.run("scancel", "--signal=USR2", job)
    until(lambda: bench.cluster.jobs()[job] == "PENDING", 60, "the job is queued again")
    states = sorted((bench.folder / "model/work").glob("state-*.safetensors"))
    assert len(states) == 1 and 0 < int(states[0].stem.removeprefix("state-")) < STEPS
    manifest = json.loads(states[0].with_name(states[0].name + ".manifest.json").read_text())
    assert manifest["meta"]["step"] == int(states[0].stem.removeprefix("state-"))
    bench.kill(head, signal.SIGINT)
