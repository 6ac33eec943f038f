# SPDX-License-Identifier: Apache-2.0
"""The launcher's own code on processes of this machine: submit, follow, signal, go on, attach, cancel, report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster_control import until
from launching import STEPS, Bench, make_bench

from sis.data.image_set import pixel_hashes
from sis.launch.local_queue import LocalQueue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Trained and sampled here, without interruption."""
    bench = make_bench(tmp_path_factory.mktemp("peace") / "project", None)
    bench.run(bench.training("model", "inline"))
    bench.run(bench.sampling("images", "model", launcher="inline"))
    return bench


@pytest.fixture
def bench(tmp_path: Path, peace: Bench) -> Bench:
    bench = make_bench(tmp_path / "project", None, peace)
    bench.configure(signal_seconds=30)
    return bench


def test_a_signalled_training_is_started_again_and_ends_with_the_same_bits(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training(launcher="local"))
    for reached in (15, 50):
        bench.reaches("model", reached)
        first = bench.process("model")
        os.kill(first, signal.SIGUSR2)
        until(lambda first=first: bench.process("model") != first, 60, "the job starts again")
    assert bench.ended(head) == 0, bench.said(head)
    assert bench.weights("model") == peace.weights("model")
    events = [event["event"] for event in bench.events("model")]
    assert events == ["start", "requeue", "start", "requeue", "start", "end"]
    assert f"{STEPS}/{STEPS} steps" in bench.said(head) or "done" in bench.said(head)


def test_a_head_that_was_killed_is_followed_by_one_that_attaches(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training(launcher="local"))
    bench.reaches("model", 10)
    job = bench.job("model")
    # The head alone: processes of a local job live in its session.
    head.kill()
    bench.ended(head)
    assert LocalQueue().states(job)
    again = bench.run(bench.training(launcher="local"))
    assert "following job" in again.stdout and "submitted" not in again.stdout
    assert bench.weights("model") == peace.weights("model")


def test_ctrl_c_ends_the_processes(bench: Bench, peace: Bench) -> None:
    head = bench.start(bench.training(launcher="local"))
    bench.reaches("model", 10)
    job, pid = bench.job("model"), bench.process("model")
    assert bench.kill(head, signal.SIGINT) == 130
    assert not LocalQueue().states(job)
    until(lambda: not Path(f"/proc/{pid}").exists(), 60, "the training has ended")
    assert bench.run(bench.training(launcher="local")).returncode == 0
    assert bench.weights("model") == peace.weights("model")


def test_a_closed_terminal_leaves_the_job_to_the_next_head(bench: Bench) -> None:
    head = bench.start(bench.training(launcher="local"))
    bench.reaches("model", 10)
    job = bench.job("model")
    assert bench.kill(head, signal.SIGHUP) == 129
    assert LocalQueue().states(job), "the job outlives the session"
    assert "leaving job" in bench.said(head)
    LocalQueue().cancel(job)


def test_a_job_that_dies_without_a_word_is_seen(bench: Bench) -> None:
    bench.configure(resubmits=0)
    head = bench.start(bench.training(launcher="local"))
    bench.reaches("model", 5)
    controller = int(bench.job("model").split("@")[0])
    os.kill(controller, signal.SIGKILL)
    os.kill(bench.process("model"), signal.SIGKILL)
    assert bench.ended(head, 60) == 2
    last = bench.said(head).strip().splitlines()[-1]
    assert last.startswith(f"error: job {controller} ") and "_0_log.err" in last


def test_a_refusal_of_the_job_is_the_refusal_of_the_head(bench: Bench) -> None:
    words = bench.training(launcher="local")
    words[words.index("--device") + 1] = "cuda"
    done = bench.run(words, check=False)
    assert done.returncode == 2
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: job ") and "torch sees no GPU" in last and "_0_log.err" in last


def test_a_job_refuses_code_that_changed_while_it_waited(bench: Bench) -> None:
    head = bench.start(bench.training(launcher="local"))
    bench.reaches("model", 5)
    source = bench.folder / "sis/notice.py"
    source.write_text(source.read_text() + "# changed\n")
    os.kill(bench.process("model"), signal.SIGUSR2)
    assert bench.ended(head) == 2
    assert "the code changed while this job was queued" in bench.said(head)


def test_shards_are_dealt_to_several_jobs(bench: Bench, peace: Bench) -> None:
    shutil.copytree(peace.folder / "model", bench.folder / "model", ignore=shutil.ignore_patterns("work"))
    done = bench.run(bench.sampling("images", "model", shards=4, launcher="local"))
    assert f"({min(4, len(os.sched_getaffinity(0)))} jobs)" in done.stdout
    assert pixel_hashes(bench.folder / "images") == pixel_hashes(peace.folder / "images")


def test_two_processes_of_one_training(bench: Bench, peace: Bench) -> None:
    bench.experiment(cluster={"train": {"tasks": 2, "gpus": 0}})
    head = bench.start(bench.training(launcher="local"))
    assert bench.ended(head) == 0, bench.said(head)
    facts = json.loads((bench.folder / "model/model.safetensors.manifest.json").read_text())["meta"]
    theirs = json.loads((peace.folder / "model/model.safetensors.manifest.json").read_text())["meta"]
    assert facts["final_loss"] == pytest.approx(theirs["final_loss"], rel=1e-3)
    assert bench.weights("model") != peace.weights("model")


def test_a_training_by_hand_stops_on_the_signal_and_goes_on(bench: Bench, peace: Bench) -> None:
    words = bench.training(launcher="inline")
    head = bench.start(words)
    log = bench.folder / "model" / "work"
    until(lambda: (log / ".training.lock").exists(), 60, "the training begins")
    time.sleep(3)
    head.send_signal(signal.SIGUSR2)
    assert bench.ended(head) == 75
    assert "stopped on request" in bench.said(head) and list(log.glob("state-*.safetensors"))
    bench.run(words)
    assert bench.weights("model") == peace.weights("model")


def test_a_second_writer_of_a_model_is_refused(bench: Bench) -> None:
    head = bench.start(bench.training(launcher="inline"))
    until(lambda: (bench.folder / "model" / "work" / ".training.lock").exists(), 60, "the training begins")
    time.sleep(1)
    done = bench.run(bench.training(launcher="inline"), check=False)
    assert done.returncode == 2 and "another process is writing this model" in done.stdout
    bench.kill(head, signal.SIGKILL)


def test_the_waiting_head_never_loads_torch(bench: Bench) -> None:
    code = (
        "import sys, sis.cli_launch, sis.launch.launcher, submitit; from sis.plan import load_plan;"
        "load_plan(experiment='tiny'); print('torch' in sys.modules)"
    )
    words = [bench.training()[0], "-c", code]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=bench.folder).stdout.strip() == "False"
