# SPDX-License-Identifier: Apache-2.0
"""How long the commands take that people wait for: help, list, and the dry-run of an experiment.

Run: python benchmarks/startup.py [EXPERIMENT]     (median of five, seconds of wall time, this machine)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
COMMANDS = {
    "sis --help": ["sis", "--help"],
    "sis list": ["sis", "list"],
    "python -m evaluators --help": [sys.executable, "-m", "evaluators", "--help"],
    "snakemake -n": ["snakemake", "--profile", "workflow/profiles/local", "-n", "--quiet", "all", "--config"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(experiment: str) -> None:
    COMMANDS["snakemake -n"].append(f"experiment={experiment}")
    for name, command in COMMANDS.items():
        print(f"{name:30} {statistics.median(seconds(command) for _ in range(5)):6.2f} s")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["demo"]))
