# SPDX-License-Identifier: Apache-2.0
"""All work of an experiment, finished or not: which jobs make which artefact, and what each waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sis.config.cards import DatasetCard
from sis.config.cluster import Needs
from sis.config.files import dataset_card
from sis.plan import Plan
from sis.plan_cluster import light
from sis.run_spec import RunSpec

#: Time limit of scoring, whatever the cards say (workflow/rules/evaluate.smk).
_SCORE_HOURS = 0.5

Step = Literal[
    "prepare", "decode", "describe", "import", "train", "encode", "average", "prior", "sample", "judge", "reference",
    "measure", "score", "publish",
]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What makes one artefact.

    step: the rule. needs: of each job; None where it is no job. rides: it is done in the job of what it reads. deps:
    artefacts that it reads. members: jobs of its array, 0 where it is one job. images: pictures that it makes or reads.
    spec: the run, or model. finished: it is there.
    """

    step: Step
    path: str
    title: str
    needs: Needs | None
    deps: tuple[str, ...]
    dataset: str
    images: int = 0
    members: int = 0
    shards: int = 0
    spec: RunSpec | None = None
    protocol: str = ""
    finished: bool = False
    rides: bool = False

    @property
    def jobs(self) -> int:
        """Slurm jobs, each member of an array counted."""
        return (self.members or 1) if self.needs and not self.rides else 0

    @property
    def limit(self) -> float:
        """Time limit of one job, hours; 0 for what is no job."""
        return (self.needs.hours or 0.0) if self.needs else 0.0


def all_work(plan: Plan) -> list[Work]:
    """Every artefact of a plan once, in the order of the stages."""
    found: dict[str, Work] = {}
    for work in (
        *_data(plan),
        *_companions(plan),
        *_models(plan),
        *_images(plan),
        *_judgements(plan),
        _publication(plan),
    ):
        found.setdefault(work.path, work)
    return list(found.values())


def _work(
    step: Step, path: str, dataset: str, needs: Needs | None, deps: list[str], *, images: int = 0, members: int = 0,
    shards: int = 0, spec: RunSpec | None = None, protocol: str = "",
) -> Work:  # fmt: skip
    parts = Path(path).parts
    name = parts[-1] if step in ("prepare", "describe") else parts[-2]
    if step == "prepare" or (step in ("measure", "reference") and len(parts) > 2):
        name = parts[-2] if step == "prepare" else parts[-3]
    title = f"{step} {dataset}" if step == "describe" else f"{step} {dataset}/{name}"
    there = Path(path).is_file()
    return Work(step, path, title, needs, tuple(deps), dataset, images, members, shards, spec, protocol, there)


def _data(plan: Plan) -> Iterator[Work]:
    for name in plan.experiment.datasets:
        card = dataset_card(name)
        for split, facts in card.splits.items():
            path = plan.pairs(card.name, split)
            yield _work("prepare", path, card.name, plan.needs("prepare", card.name), [], images=facts.count)
        if any(s.dataset.name == card.name and s.model_id and not s.checkpoint for s in plan.every):
            yield _decoded(plan, card)
        needs, path = light(plan.needs("prepare", card.name)), plan.dataset_card(card.name)
        yield _work("describe", path, card.name, needs, plan.splits(card.name))


def _companions(plan: Plan) -> Iterator[Work]:
    """Splits of other datasets whose label maps a protocol reads."""
    for protocol in {spec.protocol.name: spec.protocol for spec in plan.runs}.values():
        if protocol.labels:
            card, path = dataset_card(protocol.labels), plan.pairs(protocol.labels, protocol.split)
            yield _work(
                "prepare",
                path,
                card.name,
                plan.needs("prepare", card.name),
                [],
                images=card.splits[protocol.split].count,
            )


def _decoded(plan: Plan, card: DatasetCard) -> Work:
    """The copy of the training split that trainings read; whoever needs it first makes it."""
    folder = Path(plan.pairs(card.name, "train")).parent / "decoded"
    there = any(folder.glob("*/manifest.json"))
    title, count = f"decode {card.name}/train", card.splits["train"].count
    return Work("decode", str(folder), title, None, (), card.name, images=count, finished=there)


def _models(plan: Plan) -> Iterator[Work]:
    for spec in plan.every:
        name = spec.dataset.name
        count, pairs = spec.dataset.splits["train"].count, plan.pairs(name, "train")
        if spec.model_id:
            path = plan.model(name, spec.model_id)
            if spec.ensemble:
                inputs = plan.ensemble_inputs(name, spec.model_id)
                needs, deps = light(plan.needs("prepare", name)), [*inputs["scores"], *inputs["models"]]
                yield _work("average", path, name, needs, deps, spec=spec)
            elif spec.checkpoint:
                yield _work("import", path, name, light(plan.needs("prepare", name)), [], spec=spec)
            else:
                deps = [pairs, plan.dataset_card(name), *plan.training_inputs(name, spec.model_id).values()]
                yield _work("train", path, name, spec.needs("train"), deps, spec=spec, images=count)
        if spec.latents_id:
            encoder = plan.encoder(name, spec.latents_id)
            path, deps = plan.latents(name, spec.latents_id), [pairs, plan.model(name, encoder.model_id)]
            yield _work("encode", path, name, encoder.needs("encode"), deps, spec=encoder, images=count)
        if spec.prior_id:
            deps = [pairs, *plan.latents_input(spec).values()]
            path = plan.prior(name, spec.prior_id)
            yield _work("prior", path, name, spec.needs("prior"), deps, spec=spec, images=count)


def _images(plan: Plan) -> Iterator[Work]:
    for spec in plan.runs:
        path, images = plan.images(spec.dataset.name, spec.run_id), image_count(spec)
        if spec.given:
            yield _work("import", path, spec.dataset.name, None, [], spec=spec, images=images)
            continue
        deps = list(plan.sampling_inputs(spec.dataset.name, spec.run_id).values())
        shards = members = 0
        needs = plan.needs("prepare", spec.dataset.name)
        if spec.method.kind != "rule":  # a rule of its own is one job of Snakemake's
            needs = spec.needs("sample")
            made = len(list(Path(path).parent.glob("shard-*.parquet")))
            shards = max(1, -(-images // spec.shard_size) - made)
            members = min(shards, plan.settings.slurm.array_size)
        yield _work(
            "sample", path, spec.dataset.name, needs, deps, spec=spec, images=images, shards=shards, members=members
        )  # fmt: skip


def image_count(spec: RunSpec) -> int:
    """Images of a run."""
    return spec.dataset.splits[spec.protocol.split].count * spec.samples_per_map


def _judgements(plan: Plan) -> Iterator[Work]:
    for spec in plan.runs:
        name, protocol = spec.dataset.name, spec.protocol
        judge = plan.judge(protocol.name)
        if judge:
            count, deps = dataset_card(protocol.dataset).splits["train"].count, [plan.pairs(protocol.dataset, "train")]
            needs = plan.needs("evaluate", protocol.dataset)
            path = plan.segmenter(judge)
            yield _work("judge", path, name, needs, deps, images=count, protocol=protocol.name)
        count = protocol.reference.count or spec.dataset.splits[protocol.reference.split].count
        deps = list(plan.measuring_inputs(protocol.name, reference=True).values())
        path, needs = plan.reference(name, protocol.name), plan.needs("evaluate", name)
        yield _work("reference", path, name, needs, deps, images=count, protocol=protocol.name)
    for spec in plan.runs:
        name, protocol = spec.dataset.name, spec.protocol.name
        needs, images = spec.needs("evaluate"), image_count(spec)
        partials, deps = plan.partials(name, spec.run_id, protocol), list(plan.measuring_inputs(protocol).values())
        deps.append(plan.images(name, spec.run_id))
        yield _work("measure", partials, name, needs, deps, images=images, spec=spec, protocol=protocol)
        path, deps = plan.scores(name, spec.run_id, protocol), [partials, plan.reference(name, protocol)]
        needs = needs.model_copy(update={"hours": _SCORE_HOURS})
        score = _work("score", path, name, needs, deps, images=images, spec=spec, protocol=protocol)
        # Measuring and scoring are a group of Snakemake's: one Slurm job.
        yield replace(score, rides=not Path(partials).is_file())


def _publication(plan: Plan) -> Work:
    path = plan.published("leaderboard.html")
    deps = (*plan.all_scores(), *plan.all_images(), *plan.all_pairs(), *plan.all_dataset_cards())
    title = f"publish {plan.experiment.name}"
    return Work("publish", path, title, None, deps, "", finished=Path(path).is_file())
