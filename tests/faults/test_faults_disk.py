# SPDX-License-Identifier: Apache-2.0
"""A full or read-only disk: one line that says so, nothing torn, and the run ends well once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_bench import Bench, assert_nothing_torn, assert_refused, pair_hashes

from sis.data.image_set import pixel_hashes
from sis.data.manifest import file_sha256

pytestmark = pytest.mark.faults

Stage = tuple[Callable[[Path], list], Callable[[Path], Any]]


class Disk:
    """A file system in memory whose size a test chooses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def fill(self, free: int) -> Path:
        """Leave at most so many bytes free; returns the file to delete."""
        ballast = self.folder / "work-of-others"
        space = os.statvfs(self.folder)
        with ballast.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, space.f_bavail * space.f_frsize - free)
        return ballast

    def clear(self) -> None:
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False) if os.getuid() == 0 else None
    if mounted is None or mounted.returncode:
        reason = "mounting a small tmpfs needs root" if mounted is None else f"cannot mount: {mounted.stderr.strip()}"
        if os.getuid() == 0 and os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (in CI this test must run)")
        pytest.skip(reason)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stage(bench: Bench, name: str) -> Stage:
    """The command of a stage for an output folder, and what must not differ."""
    if name == "prepare":
        return lambda f: bench.prepare(f / "out"), lambda f: pair_hashes(f / "out")
    if name == "import":
        return lambda f: bench.bring(f / "out"), lambda f: pixel_hashes(f / "out")
    if name == "sample":
        return lambda f: bench.sample(f / "out"), lambda f: pixel_hashes(f / "out")
    model = "out/model.safetensors"
    if name == "train":
        return lambda f: bench.train(f / model), lambda f: file_sha256(f / model)

    def decode(folder: Path) -> list:
        """Training beside its pairs: the decoded arrays go to the full disk, too."""
        shutil.copytree(bench.train_pairs, folder / "pairs", ignore=shutil.ignore_patterns("decoded"))
        return bench.train(folder / model, pairs=folder / "pairs")

    return decode, lambda f: file_sha256(f / model)


STAGES = ["prepare", "import", "sample", "train", "decode"]


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_named_and_the_next_run_completes(bench: Bench, disk: Disk, tmp_path: Path, name: str) -> None:
    argv, result = stage(bench, name)
    peace = bench.runner(*argv(tmp_path / "peace"))
    assert peace.code == 0, peace.err
    wanted = result(tmp_path / "peace")
    room = sum(p.stat().st_size for p in (tmp_path / "peace").rglob("*") if p.is_file())
    refused = 0
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.97):
        disk.clear()
        command = argv(disk.folder)
        there = sum(p.stat().st_size for p in disk.folder.rglob("*") if p.is_file())
        ballast = disk.fill(int(share * (room - there)))
        outcome = bench.runner(*command)
        if outcome.code != 0:
            assert_refused(outcome, "no space left to write", "bytes free", "free disk space")
            refused += 1
        assert_nothing_torn(disk.folder)
        assert list(disk.folder.rglob(".*.tmp-*")) == []
        ballast.unlink()
        again = bench.runner(*command)
        assert again.code == 0, f"share {share}: {again.err}"
        assert result(disk.folder) == wanted
    assert refused >= 3


@pytest.mark.parametrize("name", STAGES)
def test_a_read_only_folder_is_named(bench: Bench, disk: Disk, tmp_path: Path, name: str) -> None:
    argv, result = stage(bench, name)
    assert bench.runner(*argv(tmp_path)).code == 0
    for made in (False, True):
        disk.clear()
        command = argv(disk.folder)
        if made:
            (disk.folder / "out").mkdir()
        disk.remount("ro")
        assert_refused(bench.runner(*command), "cannot write", "Read-only file system", disk.folder)
        disk.remount("rw")
        assert_nothing_torn(disk.folder)
        again = bench.runner(*command)
        assert again.code == 0, again.err
        assert result(disk.folder) == result(tmp_path)
