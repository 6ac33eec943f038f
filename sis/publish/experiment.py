# SPDX-License-Identifier: Apache-2.0
"""Stage 6, publish: gathers an experiment's scores, pictures, timings and commands, and writes its publication."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sis.data.image_set import ImageSet
from sis.data.manifest import read_manifest, write_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.plan import Plan, load_plan
from sis.publish.context import DatasetPublish, PublishContext, StageTiming
from sis.publish.publish import publish
from sis.publish.published import PlannedRun, load_published, numbers_beside
from sis.publish.sweeps import Sweep, planned


def publish_experiment(experiment: str, artefacts: str, out: Path) -> list[Path]:
    """Write tables, gallery and leaderboard of an experiment whose scores are all there; returns the files."""
    run = RunRecord.start()
    plan = load_plan({"artefacts": artefacts}, experiment=experiment)
    scores = [Path(path) for path in plan.all_scores()]
    protocols: dict[str, dict[str, object]] = {}
    for path in scores:
        protocols |= read_manifest(path, "scores").meta["protocol"]
    context = PublishContext(
        experiment=plan.experiment.name,
        title=plan.experiment.title,
        description=plan.experiment.description,
        datasets={name: _pictures(plan, name) for name in plan.experiment.datasets},
        timings=[_timing(stage, Path(path)) for stage, path in plan.artefacts()],
        commands={spec.run_id: plan.command(spec) for spec in plan.runs},
        protocols=protocols,
        published=_published(plan),
        groups=_groups(plan),
        sweeps=_sweeps(plan),
    )
    files = publish(scores, out, context)
    facts = {"experiment": plan.experiment.name, "protocols": sorted(protocols)}
    write_manifest(out, "publication", [f for f in files if f.parent == out], facts, run)
    return [*files, out / "manifest.json"]


def _pictures(plan: Plan, dataset: str) -> DatasetPublish:
    specs = [s for s in plan.runs if s.dataset.name == dataset]
    pairs = PairSet.open(plan.pairs(dataset, specs[0].protocol.split))
    sets = {s.run_id: ImageSet.open(plan.images(dataset, s.run_id)) for s in specs}
    return DatasetPublish(pairs=pairs, image_sets=sets, labels=pairs.labels)


def _timing(stage: str, path: Path) -> StageTiming:
    run = read_manifest(path, verify=False).run
    parts = [p for p in path.with_suffix("").parts if p not in ("manifest", "model", "prior")]
    return StageTiming(
        stage=stage,
        name="/".join(parts[-2:]),
        seconds=float(run["seconds"]),
        started=str(run["started"]),
        ended=str(run["ended"]),
        peak_memory_bytes=int(run["peak_memory_bytes"]),
        host=str(run["host"]),
    )


def _groups(plan: Plan) -> dict[str, str]:
    """By run id: runs that differ in their training seed alone."""
    runs = plan.experiment.runs
    return {s.run_id: runs[s.name].group for s in plan.runs if s.name in runs and runs[s.name].group}


def _sweeps(plan: Plan) -> list[Sweep]:
    """The experiment's figures, one a dataset."""
    groups, found = _groups(plan), []
    for dataset in plan.experiment.datasets:
        runs = [(spec, groups.get(spec.run_id, "")) for spec in plan.runs if spec.dataset.name == dataset]
        found += [planned(name, card, dataset, runs) for name, card in plan.experiment.figures.items()]
    return found


def _published(plan: Plan) -> pd.DataFrame | None:
    """The papers' numbers that this experiment names, each beside the runs that it belongs to."""
    if not plan.experiment.published:
        return None
    runs = [PlannedRun(spec.dataset.name, spec.name, spec.method.name) for spec in plan.runs]
    return numbers_beside(load_published(plan.experiment.published), plan.experiment, runs)
