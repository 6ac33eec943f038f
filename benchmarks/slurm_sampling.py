# SPDX-License-Identifier: Apache-2.0
"""50,000 images as an array of 100 shards on a Slurm of this machine, against the same images by one process.

Run: python benchmarks/slurm_sampling.py     (root, and tests/slurm/cluster/install-slurm; about ten minutes)

The method (palette) computes next to nothing, so that what is seen is the cost of jobs: starts, locks, shards, the
manifest. In the middle one job is cancelled and the head is killed; the pixels must be equal nevertheless.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "workflow"), str(ROOT / "tests" / "slurm")]

from cluster_control import Cluster, until, usable  # noqa: E402
from launching import Bench, make_bench  # noqa: E402

from sis.data.image_set import pixel_hashes  # noqa: E402

IMAGES, MAPS = 50_000, 16


def prepare(bench: Bench) -> None:
    """The tiny dataset's 16 label maps, each drawn so often that it makes 50,000 images."""
    path = bench.folder / "config" / "experiments" / "tiny.yaml"
    runs = {"palette": {"method": "palette", "samples_per_map": IMAGES // MAPS}}
    changes = {"runs": runs, "shard_size": 500, "batch_size": 100, "cluster": {}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    bench.configure(array_jobs=4, poll_seconds=1.0, partition="main", cpu_partition="main")


def words(out: str, launcher: str) -> list[str]:
    """The command that samples into a folder."""
    head = [sys.executable, "-m", "sis", "sample", "--experiment", "tiny", "--dataset", "scenes_tiny", "--run"]
    pairs = "artefacts/pairs/scenes_tiny/val"
    return [*head, "palette", "--pairs", pairs, "--device", "cpu", "--launcher", launcher, "--out", out]


def resident(pid: int) -> float:
    """Memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1000


def interrupted(bench: Bench) -> tuple[float, float, str]:
    """Seconds of the array, memory of its waiting head, and the last progress line; with a cancelled job and a kill."""
    began = time.perf_counter()
    head = bench.start(words("array", "slurm"))
    until(lambda: len(list((bench.folder / "array").glob("shard-*.parquet"))) >= 20, 900, "20 shards")
    memory = resident(head.pid)
    bench.kill(head, signal.SIGKILL)
    job = bench.job("array")
    bench.cluster.run("scancel", f"{job}_90")
    second = bench.start(words("array", "slurm"))
    assert bench.ended(second, 1800) == 2, "one job was cancelled"
    third = bench.run(words("array", "slurm"), timeout=600)
    assert "jobs)" not in third.stdout, "one job for the one shard"
    lines = [line for line in bench.said(second).splitlines() if "images/s" in line]
    return time.perf_counter() - began, memory, lines[len(lines) // 2]


def main() -> None:
    if not usable():
        raise SystemExit("skipped: no Slurm")
    os.environ.pop("SLURM_CONF", None)
    with tempfile.TemporaryDirectory() as place:
        cluster = Cluster(Path("/run/sis-slurm-bench"), 9)
        cluster.start()
        try:
            bench = make_bench(Path(place, "project"), cluster)
            prepare(bench)
            began = time.perf_counter()
            bench.run(words("alone", "inline"), timeout=1800)
            alone = time.perf_counter() - began
            array, memory, line = interrupted(bench)
        finally:
            cluster.stop(purge=True)
        ours, theirs = pixel_hashes(bench.folder / "array"), pixel_hashes(bench.folder / "alone")
        assert len(ours) == IMAGES and ours == theirs, "the pixels differ"
    print(f"one process: {alone:.0f} s, {IMAGES / alone:.0f} images/s")
    print(f"array of 100 jobs, 4 at a time, a kill and a cancelled job between: {array:.0f} s")
    print(f"a job costs {(array * 2 - alone) / 100:.1f} core-seconds beside its images")
    print(f"the waiting head takes {memory:.0f} MB")
    print(line)


if __name__ == "__main__":
    main()
