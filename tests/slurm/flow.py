# SPDX-License-Identifier: Apache-2.0
"""A project whose whole workflow runs on the test cluster, and everything that two such projects must agree in."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from launching import Bench

from sis.data.image_set import pixel_hashes

#: The one number that is a measurement of time.
TIMING = "images-per-second"


@dataclass
class Flow(Bench):
    """A project whose workflow runs on the test cluster."""

    @property
    def environment(self) -> dict[str, str]:
        # The executor hides SLURM_CONF from the step inside its jobs; a real cluster has its file in /etc.
        binary = self.folder / "bin" / "srun"
        if not binary.exists():
            binary.parent.mkdir(exist_ok=True)
            conf, real = super().environment["SLURM_CONF"], shutil.which("srun")
            binary.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {real} "$@"\n')
            binary.chmod(0o755)
        return {**super().environment, "PATH": f"{binary.parent}{os.pathsep}{super().environment['PATH']}"}

    def snakemake(self, experiment: str, *targets: str) -> list[str]:
        """The command; it looks at its jobs more often than on a large cluster."""
        profile = ["--profile", "workflow/profiles/slurm", "--slurm-init-seconds-before-status-checks", "7"]
        return ["snakemake", *profile, *targets, "--config", f"experiment={experiment}"]

    def asked(self) -> pd.DataFrame:
        """What every job of this project asked for, as far as the controller remembers."""
        columns = {"job": "%F", "name": "%j", "gpus": "%b", "partition": "%P", "state": "%T", "folder": "%Z"}
        lines = self.cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "|".join(columns.values())).splitlines()
        every = pd.DataFrame([line.split("|") for line in lines], columns=list(columns))
        return every[every.folder == str(self.folder)]


def results(folder: Path, experiment: str) -> dict[str, object]:
    """Every score, every pixel hash and every weight of a finished experiment."""
    scores = {}
    for path in [*folder.glob("artefacts/scores/**/*.parquet"), folder / f"results/{experiment}/scores.parquet"]:
        rows = [row for row in pq.read_table(path).to_pylist() if row["metric"] != TIMING]
        scores[str(path.relative_to(folder))] = repr(rows)  # every bit of a float; not a number equals itself
    pixels = {p.parent.name: pixel_hashes(p.parent) for p in folder.glob("artefacts/images/*/*/manifest.json")}
    weights = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder_ in ("models", "segmenters", "priors")
        for path in folder.glob(f"artefacts/{folder_}/**/*.safetensors")
        if "work" not in path.parts
    }
    return {"scores": scores, "pixels": pixels, "weights": weights}
