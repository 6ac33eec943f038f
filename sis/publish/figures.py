# SPDX-License-Identifier: Apache-2.0
"""Figures of a paper from finished image sets: many samples of one run (SDM, Fig. 9), one of every run (Fig. 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sis.data.atomic import write_bytes_atomic
from sis.data.contact_sheet import Picture, draw_sheet
from sis.data.image_set import ImageSet
from sis.data.pairs import PairSet
from sis.errors import SisError, did_you_mean, first_of
from sis.plan import Plan, RunSpec, load_plan
from sis.publish.gallery import evenly_spaced

#: Rows of a figure, and columns of samples, unless somebody says otherwise.
MAPS, SAMPLES = 4, 6


@dataclass(frozen=True)
class Choice:
    """Which pictures a figure shows.

    dataset: "" for the only one of the experiment. runs: names or ids, in this order; none: all of the dataset. ids:
    label maps; none: `maps` of them, evenly spaced over the sorted ids. samples: columns of samples, 0 for up to six.
    """

    experiment: str
    dataset: str = ""
    runs: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    maps: int = MAPS
    samples: int = 0
    artefacts: str = ""


def multimodal(choice: Choice, out: Path) -> list[Path]:
    """Draw label map, photograph and several samples of one run for each of a few label maps; writes one PNG.

    Raises SisError for missing image sets, unknown names, and runs that drew fewer samples than are asked for.
    """
    plan, specs = _plan(choice)
    if len(specs) != 1:
        raise SisError("this figure shows one run", fix=f"give --run: {first_of((s.name for s in specs), 12)}")
    (spec,) = specs
    images, pairs = _images(plan, spec), _pairs(plan, specs)
    have = int(images.meta["samples_per_map"])  # of a rule of its own, what it drew and not what was planned
    count = choice.samples or min(SAMPLES, have)
    if have < 2 or not 1 <= count <= have:
        drew = f"run {spec.name} drew {have} sample{'s' * (have > 1)} a label map"
        raise SisError(f"{drew}, this figure needs {max(2, count)}", fix="raise samples_per_map, or choose another run")
    rows = {}
    for image_id in _ids(choice, pairs, [images]):
        rows[image_id] = [*_given(pairs, image_id), *(images.get(image_id, sample) for sample in range(count))]
    heads = [*_given_heads(pairs), *(f"sample {i}" for i in range(count))]
    caption = f"{spec.title}: {count} samples of each label map, in the order of their index; {_rule(choice)}"
    return _written(out, f"{plan.experiment.title}: samples", caption, heads, rows)


def comparison(choice: Choice, out: Path) -> list[Path]:
    """Draw label map, photograph and the first sample of every run for each of a few label maps; writes one PNG.

    Raises SisError for missing image sets and unknown names.
    """
    plan, specs = _plan(choice)
    sets, pairs = [_images(plan, spec) for spec in specs], _pairs(plan, specs)
    rows = {}
    for image_id in _ids(choice, pairs, sets):
        rows[image_id] = [*_given(pairs, image_id), *(images.get(image_id, 0) for images in sets)]
    titles = [spec.title for spec in specs]
    named = [t if titles.count(t) == 1 else f"{t} ({s.name})" for t, s in zip(titles, specs, strict=True)]
    heads = [*_given_heads(pairs), *named]
    caption = f"sample 0 of every run; {_rule(choice)}"
    return _written(out, plan.experiment.title, caption, heads, rows)


def _plan(choice: Choice) -> tuple[Plan, list[RunSpec]]:
    """The experiment and the chosen runs on the chosen dataset."""
    if choice.maps < 1:
        raise SisError(f"a figure shows at least one label map, not {choice.maps}")
    plan = load_plan({"artefacts": choice.artefacts} if choice.artefacts else None, experiment=choice.experiment)
    known = list(plan.experiment.datasets)
    if not choice.dataset and len(known) > 1:
        raise SisError(
            f"experiment {plan.experiment.name} has {len(known)} datasets", fix=f"give --dataset: {first_of(known)}"
        )
    dataset = choice.dataset or known[0]
    if dataset not in known:
        raise SisError(
            f"experiment {plan.experiment.name} has no dataset {dataset!r}", fix=did_you_mean(dataset, known)
        )
    if choice.runs:
        return plan, [plan.spec(dataset, run) for run in choice.runs]
    return plan, [spec for spec in plan.runs if spec.dataset.name == dataset]


def _images(plan: Plan, spec: RunSpec) -> ImageSet:
    return ImageSet.open(plan.images(spec.dataset.name, spec.run_id))


def _pairs(plan: Plan, specs: Sequence[RunSpec]) -> PairSet:
    return PairSet.open(plan.pairs(specs[0].dataset.name, specs[0].protocol.split))


def _ids(choice: Choice, pairs: PairSet, sets: Sequence[ImageSet]) -> list[str]:
    if choice.ids:
        return list(dict.fromkeys(choice.ids))
    drawn = [{image_id for image_id, _ in images.keys()} for images in sets]  # noqa: SIM118 (no dict)
    return evenly_spaced(sorted(set(pairs.ids).intersection(*drawn)), choice.maps)


def _given(pairs: PairSet, image_id: str) -> list[Picture]:
    pair = pairs.by_id(image_id)
    return [pairs.labels.palette()[pair.label], *([] if pair.photograph is None else [pair.photograph])]


def _given_heads(pairs: PairSet) -> list[str]:
    return ["label map", *([] if pairs.get(0).photograph is None else ["photograph"])]


def _rule(choice: Choice) -> str:
    return "label maps chosen by hand" if choice.ids else "label maps evenly spaced over the sorted ids"


def _written(out: Path, title: str, caption: str, heads: list[str], rows: dict[str, list[Picture]]) -> list[Path]:
    write_bytes_atomic(out, draw_sheet(title, caption, heads, list(rows), list(rows.values())))
    return [out]
