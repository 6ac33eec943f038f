# SPDX-License-Identifier: Apache-2.0
"""How long finished artefacts took and how large they are: what is to be made is measured by them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from sis.config.files import dataset_card, named
from sis.config.protocols import ProtocolCard
from sis.config.recipe import Recipe
from sis.errors import SisError
from sis.project.cost_work import Work
from sis.project.fit_defaults import fit_defaults
from sis.run_spec import MIRRORED, RunSpec

#: Options of a training that change neither what a step costs nor the size of the network.
_SCHEDULE = set(Recipe.model_fields) - {"precision", "checkpointing"}
#: Pictures of a size up to so many times larger or smaller are compared.
_COMPARABLE = 4.0
#: What never asks for a GPU, whatever its jobs have.
_WITHOUT_GPU = ("prepare", "judge", "score")
#: Where manifests of each kind of work lie below the root.
_PLACES = {
    "prepare": "pairs/*/*/manifest.json",
    "train": "models/*/*/model.safetensors.manifest.json",
    "encode": "latents/*/*/manifest.json",
    "prior": "priors/*/*/prior.safetensors.manifest.json",
    "sample": "images/*/*/manifest.json",
    "judge": "segmenters/*/model.safetensors.manifest.json",
    "reference": "partials/*/_reference/*/manifest.json",
    "measure": "partials/*/*/*/manifest.json",
    "score": "scores/*/*/*.parquet.manifest.json",
}


@dataclass(frozen=True)
class Finished:
    """A finished artefact. seconds: what its work took, all processes added up; size: its files, bytes."""

    path: Path
    meta: dict[str, Any]
    run: dict[str, Any]
    size: int

    @property
    def machine(self) -> str:
        """The GPU, or the processor where there was none."""
        return str(self.run.get("device", "cpu")).partition(" ")[2] or str(self.run.get("cpu", "unknown"))

    @property
    def on_gpu(self) -> bool:
        return str(self.run.get("device", "cpu")).startswith("cuda")


@dataclass(frozen=True)
class Measured:
    """A time in process-hours, or a size in bytes, and where it comes from."""

    amount: float
    source: str


class Measurements:
    """The finished artefacts below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def hours(self, work: Work) -> Measured | None:
        """Process-hours of unfinished work by what alike work took here; None when there is nothing alike."""
        if work.needs is None:
            return None
        by_step: dict[str, Callable[[Work], list[tuple[float, Finished]]]] = {
            "train": self._trainings, "sample": self._samplings, "encode": self._encodings, "prior": self._priors,
            "judge": self._judges,
        }  # fmt: skip
        found = by_step.get(work.step, self._others)(work)
        gpu = bool(work.needs.gpus) and work.step not in _WITHOUT_GPU
        alike = [(seconds, one) for seconds, one in found if one.on_gpu == gpu]
        if not alike:
            return None
        own = [(seconds, one) for seconds, one in alike if work.dataset in one.path.parts] or alike
        seconds = median(seconds for seconds, _ in own)
        machines = sorted({one.machine for _, one in own})
        return Measured(seconds / 3600, f"measured on {' and '.join(machines)}")

    def parameters(self, spec: RunSpec) -> int:
        """Parameters of a model's network, if one of its shape was trained here; 0: unknown."""
        return next((int(one.meta["parameters"]) for one in self._like(spec) if one.meta.get("parameters")), 0)

    def size(self, work: Work) -> Measured | None:
        """Bytes of an unfinished artefact by alike ones; None when there are none."""
        if work.step == "train" and work.spec is not None:
            sizes = [one.size for one in self._like(work.spec)]
            return Measured(sizes[0], "measured") if sizes else None
        if work.step not in ("prepare", "sample", "reference", "measure", "score"):
            return None
        name = Path(work.path).stem if work.step == "score" else Path(work.path).parent.name
        same = [one for one in self._of(work.step) if _dataset(one) == work.dataset]
        if work.step in ("reference", "measure", "score"):
            return (
                Measured(median(sizes), "measured")
                if (sizes := [o.size for o in same if name in str(o.path)])
                else None
            )
        each = [one.size / count for one in same if (count := one.meta.get("rows") or one.meta.get("count"))]
        return Measured(median(each) * work.images, "measured") if each else None

    def _trainings(self, work: Work) -> list[tuple[float, Finished]]:
        spec = work.spec
        assert spec is not None
        fit = {**fit_defaults(spec.method.path), **spec.fit}
        found: list[tuple[float, Finished]] = []
        for one in self._like(spec):
            before, ours = _step_pixels(one.meta["fit"], _size(one)), _step_pixels(fit, tuple(spec.dataset.size))
            seconds = float(one.meta.get("training_seconds") or 0) * int(one.meta.get("processes", 1))
            if seconds and before and ours and _alike_threads(one, spec):
                found.append((seconds * ours / before, one))
        return found

    def _like(self, spec: RunSpec) -> list[Finished]:
        """Models trained here that have the shape and the precision of a run's, on pictures of a comparable size."""
        defaults = fit_defaults(spec.method.path)
        fit = {**defaults, **spec.fit}
        mine = [one for one in self._of("train") if one.meta.get("method") == spec.method.name and "fit" in one.meta]
        return [one for one in mine if _agree(one.meta["fit"], fit, defaults) and _comparable(_size(one), spec)]

    def _samplings(self, work: Work) -> list[tuple[float, Finished]]:
        spec = work.spec
        assert spec is not None
        defaults, found = fit_defaults(spec.method.path), []
        for one in self._of("sample"):
            meta, timed = one.meta, one.meta.get("kind") in ("python", "command")
            seconds = one.meta.get("sampling_seconds") if timed else one.run.get("seconds")
            alike = meta.get("method") == spec.method.name and _comparable(_size(one), spec)
            if not (seconds and meta.get("rows") and alike and _alike_threads(one, spec)):
                continue
            factor = _step_ratio(meta.get("sample", {}), spec.sample)
            if factor and _agree({**defaults, **meta.get("fit", {})}, {**defaults, **spec.fit}, defaults):
                pixels = _area(tuple(spec.dataset.size)) / _area(_size(one))
                found.append((float(seconds) / meta["rows"] * work.images * pixels * factor, one))
        return found

    def _others(self, work: Work) -> list[tuple[float, Finished]]:
        """Whole run times of the same rule on the same dataset, of judging under the same protocol."""
        found: list[tuple[float, Finished]] = []
        for one in self._of(work.step):
            seconds = float(one.run.get("seconds", 0.0))
            if work.step == "prepare" and _dataset(one) == work.dataset and one.meta.get("count"):
                found.append((seconds * work.images / one.meta["count"], one))
            elif work.step in ("reference", "measure", "score"):
                name = one.path.name.partition(".")[0] if work.step == "score" else one.path.parent.name
                if name == work.protocol and _dataset(one) == work.dataset:
                    found.append((seconds, one))
        return found

    def _encodings(self, work: Work) -> list[tuple[float, Finished]]:
        """Run times of autoencoders of the same shape."""
        spec = work.spec
        assert spec is not None
        alike = {one.path.parent.name: one for one in self._like(spec)}
        found: list[tuple[float, Finished]] = []
        ours = work.images * _area(tuple(spec.dataset.size)) * (1 + Path(work.path).parent.name.endswith(MIRRORED))
        for one in self._of("encode"):
            model, count = alike.get(str(one.meta.get("autoencoder"))), len(one.meta.get("ids", ()))
            before = count * _area(_size(one)) * (1 + bool(one.meta.get("mirrored"))) if model else 0
            if before:
                found.append((float(one.run.get("seconds", 0.0)) * ours / before, one))
        return found

    def _priors(self, work: Work) -> list[tuple[float, Finished]]:
        """Run times of priors of the same method, on pictures of a comparable size."""
        spec = work.spec
        assert spec is not None
        found: list[tuple[float, Finished]] = []
        for one in self._of("prior"):
            count, alike = one.meta.get("count"), one.meta.get("method") == spec.method.name
            if count and alike and _comparable(_size(one), spec):
                pixels = _area(tuple(spec.dataset.size)) / _area(_size(one))
                found.append((float(one.run.get("seconds", 0.0)) * work.images / count * pixels, one))
        return found

    def _judges(self, work: Work) -> list[tuple[float, Finished]]:
        """Run times of segmenters of the same recipe, whatever their number of steps."""
        protocol = named("protocols", work.protocol, ProtocolCard)
        recipe = protocol.trained_segmenter()
        ours = recipe.model_dump(mode="json") if recipe else {}
        size = tuple(dataset_card(protocol.dataset).size)
        found: list[tuple[float, Finished]] = []
        for one in self._of("judge"):
            before = dict(one.meta.get("card", {}))
            factor = _step_ratio(before, {k: v for k, v in ours.items() if k in before})
            if factor and _area(_size(one)):
                seconds = float(one.run.get("seconds", 0.0)) * factor * _area(size) / _area(_size(one))
                found.append((seconds, one))
        return found

    def _of(self, step: str) -> list[Finished]:
        found = self._all.get(step)
        if found is None:
            found = self._all[step] = list(self._read(step))
        return found

    @cached_property
    def _all(self) -> dict[str, list[Finished]]:
        return {}

    def _read(self, step: str) -> Iterator[Finished]:
        for path in sorted(self.root.glob(_PLACES[step])) if step in _PLACES else ():
            if step == "measure" and path.parts[-3] == "_reference":
                continue
            try:
                body = json.loads(path.read_text())
                size = sum(int(facts["bytes"]) for facts in body["files"].values())
                yield Finished(path, dict(body["meta"]), dict(body["run"]), size)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # a damaged artefact measures nothing; its own stage says what is wrong with it


def _dataset(one: Finished) -> str:
    return str(one.meta.get("dataset") or one.path.parts[-4 if one.path.name == "manifest.json" else -3])


def _size(one: Finished) -> tuple[int, ...]:
    """Height and width of an artefact's pictures; empty when unknown."""
    if "size" in one.meta:
        return tuple(one.meta["size"])
    try:
        return tuple(dataset_card(str(one.meta.get("dataset"))).size)
    except SisError:
        return ()


def _area(size: tuple[int, ...]) -> int:
    return size[0] * size[1] if len(size) == 2 else 0


def _comparable(size: tuple[int, ...], spec: RunSpec) -> bool:
    before, ours = _area(size), _area(tuple(spec.dataset.size))
    return bool(before) and 1 / _COMPARABLE <= ours / before <= _COMPARABLE


def _agree(before: dict[str, Any], fit: dict[str, Any], defaults: dict[str, Any]) -> bool:
    """Whether two trainings are of one network, whatever their schedule; what one does not say is its default."""
    keys = (before.keys() | fit.keys()) - _SCHEDULE
    return all(before.get(k, defaults.get(k, fit.get(k))) == fit.get(k, before.get(k)) for k in keys)


def _step_pixels(fit: dict[str, Any], size: tuple[int, ...]) -> float:
    """Pixels that a training sees in all its steps; 0 for what has no steps."""
    steps = int(fit.get("steps") or 0) + int(fit.get("finetune_steps") or 0)
    return float(steps * int(fit.get("batch_size") or 0) * _area(size))


def _step_ratio(before: dict[str, Any], ours: dict[str, Any]) -> float:
    """How many times more sampling steps; 0 when two ways of sampling differ in anything else."""
    apart = [{k: v for k, v in one.items() if k != "steps"} for one in (before, ours)]
    if apart[0] != apart[1]:
        return 0.0
    first, second = before.get("steps"), ours.get("steps")
    if isinstance(first, int) and isinstance(second, int) and first:
        return second / first
    return float(first == second)


def _alike_threads(one: Finished, spec: RunSpec) -> bool:
    return one.on_gpu or int(one.run.get("threads", spec.threads)) == spec.threads
