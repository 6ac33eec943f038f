# SPDX-License-Identifier: Apache-2.0
"""A process killed at any of its write points: nothing torn is visible, and the next run ends with the same bits."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_bench import (
    ROOT,
    Bench,
    assert_no_leftovers,
    assert_nothing_torn,
    assert_refused,
    pair_hashes,
)

from sis.data.image_set import pixel_hashes
from sis.data.manifest import file_sha256, manifest_path

pytestmark = pytest.mark.faults

#: Shards of a few images where the project would make one of 500.
SMALL_SHARDS = {"sis.data.prepare.SHARD_SIZE": 6, "sis.sampling.ingest.SHARD_SIZE": 6}


@dataclass(frozen=True)
class Scene:
    """A command that is struck again and again, each time in an empty folder.

    argv: the command, for a folder. result: what must not differ. wasted: units of work that a strike may cost.
    start: puts the inputs that the command changes into the folder.
    """

    argv: Callable[[Path], list]
    result: Callable[[Path], Any]
    wasted: int | None = None
    start: Callable[[Path], object] = lambda folder: None


def strikes(points: list[str], modes: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Every write point in every mode; `torn` only where a file is written, `last` is just after the last point."""
    for mode in modes:
        for at, name in enumerate(points, 1):
            if mode == "last":
                if at == len(points):
                    yield at, "after"
            elif mode != "torn" or name.startswith("write"):
                yield at, mode


def sweep(bench: Bench, scene: Scene, folder: Path, modes: tuple[str, ...], **strike: Any) -> int:
    """Strike at every write point, run again, compare with a run in peace; returns the number of strikes."""
    ended = {"KILL": -signal.SIGKILL, "TERM": -signal.SIGTERM, "INT": 130}[strike.get("signal", "KILL")]
    peace = folder / "peace"
    scene.start(peace)
    whole = bench.runner(*scene.argv(peace), set=SMALL_SHARDS)
    assert whole.code == 0, whole.err
    wanted, count = scene.result(peace), 0
    for at, when in strikes(whole.points, modes):
        here, label = folder / "struck", f"{when} write point {at}, {whole.points[at - 1]}"
        scene.start(here)
        struck = bench.runner(*scene.argv(here), at=at, when=when, set=SMALL_SHARDS, **strike)
        assert struck.code == ended, f"{label}: exit code {struck.code}\n{struck.err}"
        if ended == 130:
            assert struck.err.splitlines()[-1].startswith("interrupted;"), f"{label}: {struck.err}"
            assert "Traceback" not in struck.err, f"{label}: {struck.err}"
        assert_nothing_torn(here)
        again = bench.runner(*scene.argv(here), set=SMALL_SHARDS)
        assert again.code == 0, f"{label}: {again.err}"
        assert scene.result(here) == wanted, f"{label}: other bits"
        repeated = len(struck.work) + len(again.work) - len(whole.work)
        finished = manifest_path(here / "out").is_file() and not again.work
        if scene.wasted is not None:
            assert finished or repeated <= scene.wasted, f"{label}: {repeated} units of work repeated"
        assert_nothing_torn(here)
        assert_no_leftovers(here)
        shutil.rmtree(here)
        count += 1
    return count


def sampling(bench: Bench, run: str) -> Scene:
    bench.pairs, bench.model  # noqa: B018
    return Scene(lambda f: bench.sample(f / "out", run), lambda f: pixel_hashes(f / "out"), wasted=1)


def preparing(bench: Bench) -> Scene:
    return Scene(lambda f: bench.prepare(f / "out"), lambda f: pair_hashes(f / "out"), wasted=1)


def importing(bench: Bench) -> Scene:
    bench.pictures  # noqa: B018
    return Scene(lambda f: bench.bring(f / "out"), lambda f: pixel_hashes(f / "out"))


def training(bench: Bench) -> Scene:
    bench.train_pairs  # noqa: B018

    def start(folder: Path) -> None:
        shutil.copytree(bench.train_pairs, folder / "pairs", ignore=shutil.ignore_patterns("decoded"))

    def result(folder: Path) -> str:
        return file_sha256(folder / "out/model.safetensors")

    return Scene(lambda f: bench.train(f / "out/model.safetensors", pairs=f / "pairs"), result, start=start)


@pytest.mark.slow
def test_sampling_a_cheap_method_survives_a_kill_at_every_write_point(bench: Bench, memory: Path) -> None:
    assert sweep(bench, sampling(bench, "palette"), memory, ("before", "after", "torn")) > 80


@pytest.mark.slow
def test_sampling_a_network_survives_a_kill_at_every_write_point(bench: Bench, memory: Path) -> None:
    assert sweep(bench, sampling(bench, "sdm"), memory, ("before", "torn", "last")) > 45


@pytest.mark.slow
def test_training_survives_a_kill_at_every_write_point(bench: Bench, memory: Path) -> None:
    assert sweep(bench, training(bench), memory, ("before", "torn", "last")) > 55


@pytest.mark.slow
def test_preparing_survives_a_kill_at_every_write_point(bench: Bench, memory: Path) -> None:
    assert sweep(bench, preparing(bench), memory, ("before", "after", "torn")) > 30


@pytest.mark.slow
def test_importing_survives_a_kill_at_every_write_point(bench: Bench, memory: Path) -> None:
    assert sweep(bench, importing(bench), memory, ("before", "after", "torn")) > 30


@pytest.mark.slow
def test_an_interrupt_at_any_write_point_of_sampling_is_one_line(bench: Bench, memory: Path) -> None:
    assert sweep(bench, sampling(bench, "palette"), memory, ("before",), signal="INT") > 35


def test_a_killed_training_repeats_no_more_than_one_checkpoint_interval(bench: Bench, tmp_path: Path) -> None:
    """12 steps, a checkpoint every 5: killed while the second one is written, the first one is used."""
    scene = training(bench)
    scene.start(tmp_path)
    wanted = file_sha256(bench.model)
    second = [at for at, name in enumerate(_points(bench, tmp_path), 1) if name == "write tensors"][1]
    scene.start(tmp_path / "struck")
    struck = bench.runner(*scene.argv(tmp_path / "struck"), at=second, when="torn")
    assert (struck.code, len(struck.work)) == (-signal.SIGKILL, 10)
    again = bench.runner(*scene.argv(tmp_path / "struck"))
    assert again.work == [str(step) for step in range(5, 12)]
    assert scene.result(tmp_path / "struck") == wanted


def _points(bench: Bench, folder: Path) -> list[str]:
    outcome = bench.runner(*training(bench).argv(folder))
    assert outcome.code == 0, outcome.err
    return outcome.points


def test_two_processes_at_one_shard_are_kept_apart(bench: Bench, tmp_path: Path) -> None:
    """The first is stopped while it renames its first batch; the second is refused; the first then ends well."""
    argv = bench.sample(tmp_path / "out")
    wanted = pixel_hashes(bench.images())
    first = bench.runner(*argv, at=8, signal="STOP")
    assert first.code is None
    second = bench.runner(*argv)
    assert_refused(second, "another process is writing this shard", "shard-0000", "wait for it")
    assert second.work == []
    assert_nothing_torn(tmp_path)
    assert bench.runner.wake(first).code == 0
    assert pixel_hashes(tmp_path / "out") == wanted
    assert bench.runner(*argv).code == 0
    assert pixel_hashes(tmp_path / "out") == wanted


def test_two_jobs_that_finish_an_image_set_together_both_succeed(bench: Bench, tmp_path: Path) -> None:
    """Each shard is a job of its own; the last two see all shards and both write the manifest."""
    argv = bench.sample(tmp_path / "out")
    wanted = pixel_hashes(bench.images())
    assert bench.runner(*argv, "--shard", 0).code == 0
    points = len(bench.runner(*bench.sample(tmp_path / "other")).points)
    assert bench.runner(*bench.sample(tmp_path / "again"), "--shard", 0).code == 0
    last = len(bench.runner(*bench.sample(tmp_path / "again"), "--shard", 1).points)
    assert last < points
    first = bench.runner(*argv, "--shard", 1, at=last - 2, signal="STOP")
    assert first.code is None
    assert bench.runner(*argv, "--shard", 0).code == 0
    woken = bench.runner.wake(first)
    assert woken.code == 0, woken.err
    assert pixel_hashes(tmp_path / "out") == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_real_command_line_is_stopped_by_a_signal_and_resumes(
    bench: Bench, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    argv = [str(a) for a in bench.sample(tmp_path / "out", "slow")]
    with subprocess.Popen(
        [sys.executable, "-m", "sis", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    ) as process:
        _wait_for(tmp_path / "out" / "work" / "shard-0000" / "batch-00000.parquet", process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert err == "interrupted; finished work is kept, run the same command again\n"
    assert_nothing_torn(tmp_path)
    assert not (tmp_path / "out/manifest.json").exists()
    again = bench.runner(*argv)
    assert again.code == 0, again.err
    assert len(again.work) < 4
    assert pixel_hashes(tmp_path / "out") == pixel_hashes(bench.images("slow"))


def test_the_killer_works_from_the_command_line(bench: Bench, tmp_path: Path) -> None:
    argv = [str(a) for a in bench.prepare(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "tests/faults/killer.py"), "--log", str(tmp_path / "log")]
    struck = subprocess.run([*command, "3", "--", *argv], cwd=ROOT, capture_output=True, check=False)
    assert struck.returncode == -signal.SIGKILL
    assert len((tmp_path / "log").read_text().split("point ")) == 4
    assert_nothing_torn(tmp_path / "out")


def _hear_interrupts() -> None:
    """A background job of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, "the batch never came"
        time.sleep(0.01)
