# SPDX-License-Identifier: Apache-2.0
"""`sis gc`: leftovers of dead runs go; what is alive, wanted or finished never does."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sis import cli
from sis.data.atomic import temporary_beside, this_host
from sis.plan import load_plan
from sis.project import garbage
from sis.project.garbage import Collector
from sis.project.garbage_named import Named, named_work

OLD, NOW = time.time() - 100 * 3600, time.time()
DEAD = 4_194_304 + 1  # beyond any process number


def put(path: Path, when: float = OLD, text: str = "x" * 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (when, when))
    return path


def record(area: Path, job: str, attempt: int = 1, launcher: str = "slurm") -> Path:
    folder = area / "launch" / str(attempt)
    facts = {"launcher": launcher, "job": job, "attempt": attempt, "folder": str(folder)}
    return put(area / "launch" / "job.json", text=json.dumps(facts))


@dataclass
class Tree:
    """Artefacts below a folder; `alive` are jobs that run, `lost` those of a silent controller."""

    root: Path
    named: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def area(self, kind: str, name: str, named: bool = True, finished: float = 0.0) -> Path:
        folder = self.root / kind / "scenes" / name
        if named:
            self.named.add(f"{kind}/scenes/{name}")
        if finished:
            for declared in garbage._DECLARED[kind]:
                put(folder / declared, finished)
        (folder / "work").mkdir(parents=True)
        return folder / "work"

    def collector(self, unread: tuple[str, ...] = ()) -> Collector:
        def alive(launcher: str, job: str) -> bool | None:
            assert launcher in ("slurm", "local")
            return None if job in self.lost else job in self.alive

        return Collector(self.root, Named(frozenset(self.named), unread), alive)

    def clean(self) -> set[Path]:
        """Remove all leftovers; returns what they were."""
        collector = self.collector()
        found = collector.survey()
        assert sum(collector.remove(one) for one in found.leftovers) == found.size
        paths = {path for one in found.leftovers for path in one.paths}
        assert not [path for path in paths if path.exists()]
        return paths


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "artefacts")


def test_batches_and_states_of_finished_work_go_and_locks_and_second_names_stay(tree: Tree) -> None:
    model, images = tree.area("models", "sdm-1", finished=NOW), tree.area("images", "run-1", finished=NOW)
    gone = {put(model / "state-00000005.safetensors"), put(model / "training.parquet")}
    gone |= {put(images / "shard-0001" / "batch-00000.parquet").parent}
    stay = {put(model / ".training.lock"), put(images / "shard-0001.lock"), put(images / "manifest.json.spare")}
    assert tree.clean() == gone
    assert all(path.exists() for path in stay)


def test_a_resumable_state_of_wanted_unfinished_work_stays(tree: Tree) -> None:
    area = tree.area("models", "sdm-1")
    state = put(area / "state-00000005.safetensors")
    assert not tree.clean() and state.exists()


def test_what_is_newer_than_the_finished_work_is_of_another_run(tree: Tree) -> None:
    area = tree.area("models", "sdm-1", finished=NOW - 60)
    state = put(area / "state-00000005.safetensors", NOW)
    assert not tree.clean() and state.exists()


def test_work_that_no_experiment_names_goes_after_a_day(tree: Tree) -> None:
    old, new = tree.area("models", "gone-1", named=False), tree.area("models", "gone-2", named=False)
    put(old / "state-00000005.safetensors")
    put(new / "state-00000005.safetensors", NOW)
    survey = tree.collector().survey()
    assert [one.paths for one in survey.leftovers] == [(old,)] and survey.size == 10
    assert [path for path, _ in survey.kept] == [new]
    assert tree.clean() == {old}


def test_nothing_is_unnamed_while_an_experiment_cannot_be_read(tree: Tree) -> None:
    put(tree.area("models", "gone-1", named=False) / "state-00000005.safetensors")
    survey = tree.collector(unread=("broken",)).survey()
    assert not survey.leftovers and "broken cannot be read" in survey.kept[0][1]


def test_the_only_copy_of_a_result_stays_though_no_experiment_names_it(tree: Tree) -> None:
    area = tree.area("models", "gone-1", named=False)
    spare = put(area / "model.safetensors.spare")
    assert not tree.clean() and spare.exists()


@pytest.mark.parametrize(("state", "why"), [("alive", "is alive"), ("lost", "the queue does not answer")])
@pytest.mark.parametrize("named", [True, False])
def test_work_of_a_job_that_may_live_is_left_alone(tree: Tree, state: str, why: str, named: bool) -> None:
    area = tree.area("models", "sdm-1", named=named, finished=NOW)
    getattr(tree, state).add("17")
    record(area, "17")
    inside = [put(area / "state-00000005.safetensors"), put(area / f".state.tmp-{DEAD}")]
    survey = tree.collector().survey()
    assert not survey.leftovers and why in survey.kept[0][1]
    assert all(path.exists() for path in inside)


def test_a_record_that_cannot_be_read_protects_its_work(tree: Tree) -> None:
    area = tree.area("models", "sdm-1", finished=NOW)
    put(area / "launch" / "job.json", text="{")
    put(area / "state-00000005.safetensors")
    survey = tree.collector().survey()
    assert not survey.leftovers and "cannot be read" in survey.kept[0][1]


def test_processes_of_another_machine_are_not_taken_for_dead(tree: Tree) -> None:
    area = tree.area("models", "sdm-1", finished=NOW)
    record(area, "17@5", launcher="local")
    put(area / "state-00000005.safetensors")
    lock = put(area / "launch" / ".lock", text=json.dumps({"host": "elsewhere", "pid": 1}))
    assert not tree.clean()
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 1}))
    assert len(tree.clean()) == 1


def test_a_held_lock_protects_its_work_even_between_the_list_and_the_removal(tree: Tree) -> None:
    area = tree.area("images", "run-1", finished=NOW)
    batch = put(area / "shard-0001" / "batch-00000.parquet")
    lock = put(area / "shard-0001.lock")
    collector = tree.collector()
    found = collector.survey().leftovers
    assert [one.paths for one in found] == [(batch.parent,)]
    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert not collector.survey().leftovers
        assert not collector.remove(found[0]) and batch.exists()
    assert collector.remove(found[0]) and not batch.exists() and lock.exists()


def test_a_job_that_began_between_the_list_and_the_removal_is_seen(tree: Tree) -> None:
    area = tree.area("models", "gone-1", named=False)
    state = put(area / "state-00000005.safetensors")
    collector = tree.collector()
    found = collector.survey().leftovers
    record(area, "99")
    tree.alive.add("99")
    assert len(found) == 1 and not collector.remove(found[0]) and state.exists()


def test_of_a_launch_the_logs_go_and_what_the_next_head_asks_for_stays(tree: Tree) -> None:
    area = tree.area("models", "sdm-1", finished=NOW)
    record(area, "17", attempt=2)
    launch = area / "launch"
    gone = {put(launch / "1" / "16_0_log.err").parent, put(launch / "2" / "17_0_log.err")}
    stay = [put(launch / "2" / "outcome-0.json"), put(launch / ".lock"), put(launch / "events.jsonl")]
    assert tree.clean() == gone
    assert all(path.exists() for path in [*stay, launch / "job.json"])


def test_of_an_unfinished_launch_only_earlier_submissions_go(tree: Tree) -> None:
    area = tree.area("models", "sdm-1")
    record(area, "17", attempt=2)
    last = put(area / "launch" / "2" / "17_0_log.err")
    earlier = put(area / "launch" / "1" / "16_0_log.err").parent
    assert tree.clean() == {earlier}
    assert last.exists()


def test_half_written_files_go_when_they_are_old_and_their_writer_is_dead(tree: Tree) -> None:
    folder = tree.root / "pairs" / "scenes" / "train"
    old, young = put(folder / f".manifest.json.tmp-{DEAD}"), put(folder / f".shard.tmp-{DEAD}", NOW)
    living, other = put(folder / f".shard.tmp-{os.getpid()}"), put(folder / "shard.tmp-12")
    inside = put(folder / f".folder.tmp-{DEAD}" / "file").parent
    os.utime(inside, (OLD, OLD))
    assert tree.clean() == {old, inside}
    assert young.exists() and living.exists() and other.exists()


def test_half_written_files_of_other_machines_go_by_their_age_alone(tree: Tree) -> None:
    folder = tree.root / "pairs" / "scenes" / "train"
    here = temporary_beside(put(folder / "a")).name
    there = here.replace(this_host(), "0" * 8)
    living, old, young = put(folder / here), put(folder / there), put(folder / there.replace(".a.", ".b."), NOW)
    assert tree.clean() == {old}
    assert living.exists() and young.exists()


def test_links_are_not_followed(tree: Tree, tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "scratch" / "state-00000001.safetensors")
    area = tree.area("models", "sdm-1", finished=NOW)
    area.rmdir()
    area.symlink_to(elsewhere.parent)
    other = tree.area("models", "sdm-2", finished=NOW)
    (other / "more").symlink_to(elsewhere.parent)
    os.utime(other / "more", (OLD, OLD), follow_symlinks=False)
    assert tree.clean() == {other / "more"}
    assert elsewhere.exists()


def grow(tree: Tree, draw: random.Random, locks: ExitStack) -> tuple[set[Path], set[Path]]:
    """A random tree: the files that must stay, and those that must go."""
    stay, go = set[Path](), set[Path]()
    for number in range(8):
        kind, named = draw.choice(["models", "images"]), draw.random() < 0.6
        end = draw.choice([0.0, NOW - 50 * 3600])
        area = tree.area(kind, f"m-{number}", named, end)
        stay |= {area.parent / name for name in garbage._DECLARED[kind] if end}
        young = draw.random() < 0.3
        files = {put(area / f"state-{i}.safetensors", NOW if young else OLD) for i in range(draw.randint(0, 2))}
        files |= {put(area / "shard-0" / "batch-0.parquet", NOW if young else OLD)}
        kept = {put(area / name, OLD, "") for name in draw.sample([".training.lock", "shard-0.lock", "a.spare"], 2)}
        spare = any(path.suffix == ".spare" for path in kept)
        state = draw.choice(["none", "dead", "alive", "lost"])
        if state != "none":
            kept.add(record(area, f"{state}{number}"))
            {"dead": set(), "alive": tree.alive, "lost": tree.lost}[state].add(f"{state}{number}")
            log = put(area / "launch" / "1" / "log.err", OLD)
            (go if named and end and state == "dead" else kept if named or state != "dead" else files).add(log)
        held = draw.random() < 0.25 and any(path.suffix == ".lock" for path in kept)
        if held:
            lock = next(path for path in kept if path.suffix == ".lock")
            fcntl.flock(locks.enter_context(lock.open("a")), fcntl.LOCK_EX)
        busy = held or state in ("alive", "lost")
        if named:
            kept |= set() if end and not young else files
            go |= files if end and not young else set()
            stay |= kept
        elif young or (spare and not end):
            stay |= files | kept
        else:
            go |= files | kept
        if busy:
            stay |= {path for path in (files | kept | go) if area in path.parents}
            go = {path for path in go if area not in path.parents}
    return stay, go


@pytest.mark.parametrize("seed", range(25))
def test_nothing_living_is_ever_removed_and_nothing_dead_is_kept(tree: Tree, seed: int) -> None:
    with ExitStack() as locks:
        stay, go = grow(tree, random.Random(seed), locks)
        tree.clean()
        assert not [path for path in stay if not path.exists()]
        assert not [path for path in go if path.exists()]


class Killed(BaseException):
    """The process died."""


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_up_that_is_killed_breaks_nothing_and_is_ended_by_the_next(
    tree: Tree, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        assert Path(path).name.startswith(".gc-"), "half of a folder under its own name"
        files = sorted(p for p in Path(path).rglob("*") if p.is_file())
        for file in draw.sample(files, len(files) // 2):
            file.unlink()
        raise Killed

    with ExitStack() as locks:
        stay, go = grow(tree, draw, locks)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", killed)
            collector = tree.collector()
            for one in collector.survey().leftovers:
                try:
                    collector.remove(one)
                except Killed:
                    continue
        tree.clean()
        assert not [path for path in stay if not path.exists()]
        assert not [path for path in go if path.exists()] and not list(tree.root.rglob(".gc-*"))


def test_every_experiment_and_what_it_uses_is_named() -> None:
    named = named_work()
    assert not named.unread
    plan = load_plan(experiment="tiny_latent")
    expected = {f"images/{s.dataset.name}/{s.run_id}" for s in plan.runs}
    expected |= {f"models/{s.dataset.name}/{s.model_id}" for s in plan.every if s.model_id}
    assert expected <= named.folders and plan.parts


@pytest.fixture
def command(tree: Tree) -> tuple[list[str], Path]:
    """The command line on a tree, and a file that it would remove."""
    return ["gc", "--artefacts", str(tree.root)], put(tree.root / "pairs" / f".manifest.json.tmp-{DEAD}")


def test_without_a_terminal_nothing_is_removed_unasked(
    command: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words, leftover = command
    assert cli.main(words) == 2
    assert "add --yes" in capsys.readouterr().err and leftover.exists()
    assert cli.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"10 B  {leftover}: half written by a dead process" in shown and leftover.exists()
    assert cli.main([*words, "--yes"]) == 0
    assert "removed 10 B of 10 B" in capsys.readouterr().out and not leftover.exists()
    assert cli.main(words) == 0, "nothing to ask about"


@pytest.mark.parametrize(("answer", "stays"), [("", True), ("n", True), ("yes", False), ("Y", False)])
def test_a_terminal_is_asked_once(
    command: tuple[list[str], Path], answer: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, leftover = command
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    assert cli.main(words) == 0
    assert asked == ["10 B of leftovers: remove them? [y/N] "] and leftover.exists() == stays


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--artefacts", str(tmp_path / "away")]) == 2
    assert "no such folder" in capsys.readouterr().err
