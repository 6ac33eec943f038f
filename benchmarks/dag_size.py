# SPDX-License-Identifier: Apache-2.0
"""How many jobs the full benchmark is, and how long Snakemake takes to plan it: 5 datasets, 25 methods, 50,000 images.

Run: python benchmarks/dag_size.py [REPEATS]     (seconds of wall time of a dry-run, this machine; starts nothing)
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Dataset: its protocol, its val maps.
DATASETS = {
    "ade20k": ("ade20k_sdm", 2000),
    "cityscapes": ("cityscapes_sdm", 500),
    "coco_stuff": ("coco_stuff_oasis", 5000),
    "celebamask_hq": ("celebamask_hq_sdm", 2000),
    "landscapes": ("landscapes_iidm", 1000),
}
IMAGES = 50_000
MODELS = """
models:
  kl: {method: autoencoder_kl}
  vq: {method: autoencoder_vq}
  text: {method: prompts, fit: {stand_in: true}}
  base: {method: latent_diffusion, uses: {autoencoder: kl, text: text}}
runs:
"""
USES = "uses: {autoencoder: kl, base: base, text: text}"


def experiment() -> str:
    """25 methods, every one with a training of its own, that need no file of somebody else."""
    lines = [f"  sdm-{i}: {{method: sdm, fit: {{width: {32 * i}}}}}" for i in range(1, 11)]
    lines += [f"  lora-{i}: {{method: sdm_lora, fit: {{lora_rank: {i}}}, {USES}}}" for i in range(1, 6)]
    lines += [f"  scp-{i}: {{method: scp_diff, fit: {{steps: {1000 * i}}}, {USES}}}" for i in range(1, 6)]
    lines += [f"  iidm-{i}: {{method: iidm, fit: {{width: {32 * i}}}, uses: {{autoencoder: vq}}}}" for i in range(1, 6)]
    datasets = [
        f"  {name}: {{protocol: {protocol}, samples_per_map: {-(-IMAGES // maps)}}}"
        for name, (protocol, maps) in DATASETS.items()
    ]
    head = "name: full_benchmark\ntitle: The full benchmark\nshard_size: 500\ndatasets:\n"
    return head + "\n".join(datasets) + MODELS + "\n".join(lines) + "\n"


def project(folder: Path) -> Path:
    """A project in an empty folder that knows the experiment."""
    for part in ("Snakefile", "config", "workflow"):
        source = ROOT / part
        shutil.copytree(source, folder / part) if source.is_dir() else shutil.copy2(source, folder / part)
    for part in ("sis", "evaluators"):
        (folder / part).symlink_to(ROOT / part)
    (folder / "config" / "experiments" / "full_benchmark.yaml").write_text(experiment())
    return folder


def dry_run(folder: Path) -> tuple[int, float]:
    """Number of jobs, and seconds."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    profile = ["--profile", "workflow/profiles/local", "--cores", "2"]
    command = ["snakemake", *profile, "--config", "experiment=full_benchmark", "--dry-run", "--quiet", "rules"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.findall(r"^total +(\d+)", done.stdout + done.stderr, re.MULTILINE)
    return int(found[0]), seconds


def main(repeats: str = "3") -> None:
    """Print both."""
    with tempfile.TemporaryDirectory() as folder:
        copy = project(Path(folder))
        found = [dry_run(copy) for _ in range(int(repeats))]
    times = [seconds for _, seconds in found]
    print(f"{len(DATASETS)} datasets x 25 methods x {IMAGES:,} images")
    print(f"{found[0][0]:,} jobs, planned in {statistics.median(times):.2f} s (median of {repeats})")


if __name__ == "__main__":
    main(*sys.argv[1:])
