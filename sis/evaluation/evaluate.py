# SPDX-License-Identifier: Apache-2.0
"""`sis eval`: compose an experiment of one image set and its controls, run the workflow on it, gather the table."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from sis.config.experiment import DatasetUse, Experiment, Run
from sis.config.files import ad_hoc, project_root, settings
from sis.config.protocols import ProtocolCard
from sis.data.atomic import atomic_path, write_text_atomic
from sis.data.manifest import publish_file, read_manifest, stable_hash
from sis.data.parallel import available_cores
from sis.data.provenance import RunRecord
from sis.data.schemas import SCORES
from sis.data.tables import read_table, write_table_file
from sis.errors import SisError
from sis.evaluation.judged import (
    Judged,
    bring_folder,
    look_at_folder,
    look_for_copies,
    own_facts,
    prepared_pairs,
    take_set,
)
from sis.evaluation.request import (
    Request,
    check_metrics,
    choose_controls,
    choose_protocol,
    find_dataset,
    local_judge,
    only,
    run_name,
)
from sis.evaluation.required_weights import require_weights
from sis.evaluation.table import plain, score_lines, spelled
from sis.evaluation.workflow import run_workflow
from sis.plan import Plan, load_plan


@dataclass(frozen=True)
class Evaluation:
    """What came out: the table as lines for people, and the files that hold it."""

    lines: list[str]
    files: list[Path]


def evaluate(request: Request) -> Evaluation:
    """Judge a folder of pictures or an image set; whatever was made before is used again.

    Raises SisError, with nothing half-written, for a request that cannot be meant, a folder or set that is unfit
    (docs/evaluate-a-folder.md lists how), and whatever a stage of the workflow refuses.
    """
    root = project_root()
    for option, number in (("--samples", request.samples), ("--threads", request.threads)):
        if number < 0:
            raise SisError(f"a number from 1 on, found {number}", where=option)
    request = replace(request, source=_folder(request.source))
    own, samples = own_facts(request.source)
    dataset = find_dataset(request, own)
    whole = choose_protocol(dataset, request.protocol)
    check_metrics(whole, request.metrics)
    controls = choose_controls(request.controls, dataset, whole.split)
    name = run_name(request, controls)
    places = _places(whole)
    out = request.out or root / places.settings.results / "eval" / name
    _require_writable(out)
    pairs = prepared_pairs(places, dataset, whole.split)
    found = None if own else look_at_folder(request, pairs)
    if not request.protocol and dataset.layout != "scenes":
        require_weights(whole, request.metrics, found.samples if found else samples, local_judge(dataset))
    judged = bring_folder(request, places, whole, name, found) if found else take_set(request, places, whole)
    protocol = only(whole, request.metrics)
    experiment = compose(protocol, name, request.title, judged, controls, request.threads or available_cores())
    plan = load_plan(experiment=experiment)
    _lend_partials(plan)
    log = root / "logs" / "eval" / f"{experiment}.log"
    run_workflow(experiment, plan.all_scores(), available_cores(), log)
    # The workflow may have prepared the training photographs.
    copies = look_for_copies(plan, judged.images, whole, request.source)
    return gather(plan, replace(judged, copies=copies), controls, whole, out)


def _places(protocol: ProtocolCard) -> Plan:
    """A plan of no runs: where artefacts lie, whatever experiment config/config.yaml names."""
    use = {protocol.dataset: DatasetUse(protocol=protocol.name)}
    nothing = Experiment(name="eval", title="eval", datasets=use, runs={"none": Run(method="none")})
    return Plan(settings(), nothing, [], [])


def compose(protocol: ProtocolCard, name: str, title: str, judged: Judged, controls: list[str], threads: int) -> str:
    """Write the experiment of one image set and its controls; returns its name, which changes with its content."""
    meta = judged.images.meta
    runs = {
        name: Run(
            method=name, title=title or meta["title"], image_set=judged.run_id, samples_per_map=meta["samples_per_map"]
        )
    }
    runs |= {control: Run(method=control) for control in controls}
    facts = {
        "title": f"{title or meta['title']}, evaluated by itself",
        "datasets": {protocol.dataset: DatasetUse(protocol=protocol.name)},
        "runs": runs,
        "samples_per_map": meta["samples_per_map"],
        "threads": threads,
    }
    hashed = stable_hash({k: repr(v) for k, v in facts.items()})
    experiment = Experiment(name=f"eval-{name}-{hashed}", **facts)
    text = yaml.safe_dump(experiment.model_dump(exclude_defaults=True), sort_keys=False)
    write_text_atomic(ad_hoc("experiments") / f"{experiment.name}.yaml", f"# Written by `sis eval`.\n{text}")
    return experiment.name


def gather(plan: Plan, judged: Judged, controls: list[str], protocol: ProtocolCard, out: Path) -> Evaluation:
    """Read the scores of the set and its controls and write `<protocol>.parquet`, `.json` and `.md` to `out`.

    protocol: the whole one, where only some of its metrics were asked for (which the files' names then tell).
    """
    run = RunRecord.start()
    rows: dict[str, list[dict]] = {}
    records: dict[str, Any] = {}
    for spec in plan.runs:
        path = project_root() / plan.scores(spec.dataset.name, spec.run_id, spec.protocol.name)
        records |= read_manifest(path, "scores").meta["protocol"]
        rows[spec.name] = read_table(path, SCORES).to_pylist()
    name = plan.runs[0].name
    lines = score_lines(rows[name], {c: rows[c] for c in controls}, records)
    meta, warnings = judged.images.meta, _warnings(judged)
    head = f"{plan.runs[0].title} on {meta['dataset']}/{meta['split']}, protocol {protocol.name}"
    facts = {
        "name": name, "title": plan.runs[0].title, "dataset": meta["dataset"], "split": meta["split"],
        "protocol": protocol.name, "run_id": judged.run_id, "images": meta["rows"], "pattern": judged.pattern,
        "samples_per_map": meta["samples_per_map"], "warnings": warnings, "metrics": plain(lines, controls),
        "classes": [_class(r) for r in rows[name] if r["class_name"]], "protocols": records,
    }  # fmt: skip
    text = [head, "", *spelled(lines, controls), *(f"warning: {w}" for w in warnings)]
    table = pa.Table.from_pylist([row for part in rows.values() for row in part], schema=SCORES)
    files = [out / f"{plan.runs[0].protocol.name}.{end}" for end in ("parquet", "json", "md")]
    with atomic_path(files[0]) as temporary:
        write_table_file(table, temporary, SCORES, {"protocol": protocol.name})
        facts_of_scores = {"run": name, "run_id": judged.run_id, "protocol": records}
        publish_file(temporary, files[0], "scores", facts_of_scores, run)
    write_text_atomic(files[1], json.dumps(facts, indent=1, allow_nan=False) + "\n")
    write_text_atomic(files[2], "```\n" + "\n".join(text) + "\n```\n")
    return Evaluation(text, files)


def _warnings(judged: Judged) -> list[str]:
    unchecked = [] if judged.copies.training_checked else ["not compared with training photographs: not prepared here"]
    return judged.copies.badges() + unchecked


def _class(row: dict) -> dict[str, Any]:
    names = ("metric", "class_name", "value", "low", "high", "unit", "protocol_id", "stand_in", "note")
    return {name: row[name] for name in names}


def _lend_partials(plan: Plan) -> None:
    """Link what other protocols measured of the same images: partials are known by their key, which is in their name.

    A file whose key is another is passed over by whoever measures.
    """
    for spec in plan.runs:
        measured = (plan.partials(spec.dataset.name, spec.run_id, spec.protocol.name),
                    plan.reference(spec.dataset.name, spec.protocol.name))  # fmt: skip
        for manifest in measured:
            folder = (project_root() / manifest).parent
            for path in sorted(folder.parent.glob("*/*.parquet")):
                here = folder / path.name
                if path.parent != folder and not here.exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    with suppress(OSError):  # no links on this file system: measured again
                        os.link(path, here)


def _require_writable(out: Path) -> None:
    """Refuse a bad place for the table before anything is computed."""
    if out.is_file():
        raise SisError("this is a file, a folder is asked for", where=out, fix="choose another --out")
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise SisError("cannot write here", where=nearest, fix="choose another --out")


def _folder(path: Path) -> Path:
    """A set may be named by its manifest."""
    return path.parent if path.name == "manifest.json" else path
