# SPDX-License-Identifier: Apache-2.0
"""Chooses the best of several judged models by one metric and writes their mean as a model (IIDM's model ensemble)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sis.data.manifest import Manifest, read_manifest, stable_hash
from sis.data.provenance import RunRecord
from sis.data.schemas import SCORES
from sis.data.tables import read_table
from sis.data.tensors import save_tensors
from sis.errors import SisError, first_of
from sis.plan import RunSpec
from sis.training.average import average_weights


def average_best(spec: RunSpec, scores: Sequence[Path], models: Sequence[Path], out: Path) -> Manifest:
    """Average the weights of the ensemble's best members.

    Args:
        spec: the run with the ensemble.
        scores, models: the score table and the model of each member, in the order of the members.

    Raises SisError where the metric has no value for a member, and for models that do not fit together.
    """
    ensemble = spec.ensemble
    if ensemble is None:
        raise SisError(f"run {spec.name} is no mean of others", fix="write `ensemble:` in the experiment")
    if not len(scores) == len(models) == len(ensemble.members):
        what = f"{len(scores)} score tables and {len(models)} models for {len(ensemble.members)} members"
        raise SisError(what, where=spec.name, fix="give one of each for each member, in their order")
    run = RunRecord.start(device="cpu")
    judged = [_value(path, ensemble.by) for path in scores]
    sign = -1.0 if any(direction == "higher" for _, direction in judged) else 1.0
    places = sorted(range(len(judged)), key=lambda i: (sign * judged[i][0], i))[: ensemble.best]
    chosen = [models[i] for i in sorted(places)]
    tensors = {name: value.float() for name, value in average_weights(chosen).items()}
    digests = [read_manifest(path, "model", verify=False).digest for path in chosen]
    values = {m.name: value for m, (value, _) in zip(ensemble.members, judged, strict=True)}
    facts = read_manifest(models[0], "model", verify=False).meta | {
        "model_id": spec.model_id,
        "key": stable_hash([spec.model_id, digests], 16),
        "weights": "averaged",
        "ensemble": {
            "by": ensemble.by,
            "values": values,
            "chosen": [ensemble.members[i].name for i in sorted(places)],
        },
    }
    save_tensors(tensors, out, "model", facts, run)
    return read_manifest(out, "model")


def _value(path: Path, metric: str) -> tuple[float, str]:
    """The overall value of a metric in a score table, and its direction."""
    read_manifest(path, "scores")
    table = read_table(path, SCORES)
    columns = table.select(["metric", "class_name", "value", "direction"]).to_pylist()
    rows = [row for row in columns if not row["class_name"] and row["value"] is not None]
    named = [(row["metric"].partition("[")[0], row) for row in rows]
    found = [row for name, row in named if name == metric]
    # A protocol's metric adds to its name what it is judged by: fd-scenes-segmenter.
    found = found or [row for name, row in named if name.startswith(f"{metric}-")]
    if len(found) != 1:
        known = first_of(sorted({r["metric"] for r in rows}), 12)
        raise SisError(
            f"{len(found)} values of {metric} where one decides: {known}", where=path, fix="choose another `by:`"
        )
    return float(found[0]["value"]), str(found[0]["direction"])
