# SPDX-License-Identifier: Apache-2.0
"""What orchestration costs: a whole experiment on a Slurm of this machine, its wall time against its own work.

Run: python benchmarks/slurm_overhead.py [EXPERIMENT]     (default: demo; root, and tests/slurm/cluster/install-slurm)

The local profile runs first, the slurm profile after it on two virtual nodes; scores and pixels must be equal. Useful
work is what the commands themselves recorded, on the longest chain of stages that wait for one another; overhead is
(wall - useful) / wall. All jobs share this machine's cores, so waiting for a core is in both.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "workflow"), str(ROOT / "tests" / "slurm")]

from cluster_control import Cluster, usable  # noqa: E402
from flow import Flow, results  # noqa: E402
from project_copy import copy_project  # noqa: E402

from sis.data.manifest import read_manifest  # noqa: E402
from sis.data.tables import table_metadata  # noqa: E402
from sis.errors import SisError  # noqa: E402
from sis.plan import Plan, RunSpec, load_plan  # noqa: E402


def seconds(artefact: str) -> float:
    """Seconds that the command behind an artefact recorded; 0 for what records none."""
    try:
        return float(str(read_manifest(artefact, verify=False).run["seconds"]))
    except SisError:
        return 0.0


def sampling(manifest: str) -> float:
    """Seconds of the slowest job of an image set: every shard says how long its job had been at work.

    Sets that somebody else made have no such shards; their manifest says how long it took to bring them in.
    """
    runs = [table_metadata(path).get("run", {}) for path in Path(manifest).parent.glob("shard-*.parquet")]
    return max((float(run.get("seconds", 0.0)) for run in runs), default=0.0) or seconds(manifest)


class CriticalPath:
    """When each artefact of a finished experiment could be there, were every job started at once and alone."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def pairs(self, dataset: str) -> float:
        return max(seconds(path) for path in self.plan.splits(dataset)) + seconds(self.plan.dataset_table(dataset))

    def model(self, spec: RunSpec) -> float:
        name = spec.dataset.name
        begin = max([self.pairs(name), *(self.model(other) for other in spec.uses.values())])
        latents = seconds(self.plan.latents(name, spec.latents_id)) if spec.latents_id else 0.0
        return begin + latents + (seconds(self.plan.model(name, spec.model_id)) if spec.model_id else 0.0)

    def images(self, spec: RunSpec) -> float:
        name = spec.dataset.name
        prior = seconds(self.plan.prior(name, spec.prior_id)) if spec.prior_id else 0.0
        return self.model(spec) + prior + sampling(self.plan.images(name, spec.run_id))

    def scores(self, spec: RunSpec) -> float:
        plan, name, protocol = self.plan, spec.dataset.name, spec.protocol.name
        judge = plan.judge(protocol)
        segmenter = self.pairs(name) + (seconds(plan.segmenter(judge)) if judge else 0.0)
        measured = max(self.images(spec), segmenter) + seconds(plan.partials(name, spec.run_id, protocol))
        reference = segmenter + seconds(plan.reference(name, protocol))
        return max(measured, reference) + seconds(plan.scores(name, spec.run_id, protocol))

    def length(self) -> float:
        """Seconds from nothing to the published page."""
        return max(self.scores(spec) for spec in self.plan.runs) + seconds(self.plan.published("manifest.json"))


def timed(flow: Flow, words: list[str]) -> float:
    """Seconds of a command that must succeed."""
    began = time.perf_counter()
    flow.run(words, timeout=7200)
    return time.perf_counter() - began


def main(experiment: str = "demo") -> None:
    if not usable():
        raise SystemExit("skipped: no Slurm")
    os.environ.pop("SLURM_CONF", None)
    with tempfile.TemporaryDirectory() as place:
        cluster = Cluster(Path("/run/sis-slurm-bench"), 9)
        flows = []
        for name in ("local", "slurm"):
            (folder := Path(place, name)).mkdir()
            flows.append(Flow(copy_project(folder), cluster))
        local, slurm = flows
        slurm.configure(poll_seconds=2.0)
        cluster.start()
        try:
            profile = ["snakemake", "--profile", "workflow/profiles/local", "--cores", "2"]
            here = timed(local, [*profile, "--config", f"experiment={experiment}"])
            there = timed(slurm, slurm.snakemake(experiment))
        finally:
            cluster.stop(purge=True)
        assert results(local.folder, experiment) == results(slurm.folder, experiment), "the profiles disagree"
        os.chdir(slurm.folder)
        useful = CriticalPath(load_plan(experiment=experiment)).length()
    print(f"{experiment}: scores and pixels equal under both profiles")
    print(f"local profile, two cores: {here:.0f} s")
    print(f"slurm profile, two nodes on the same two cores: {there:.0f} s")
    print(f"useful work on its critical path: {useful:.0f} s; overhead {(there - useful) / there:.0%} of the wall time")


if __name__ == "__main__":
    main(*sys.argv[1:2])
