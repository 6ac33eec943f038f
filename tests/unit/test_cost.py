# SPDX-License-Identifier: Apache-2.0
"""`sis plan`: what unfinished work costs, by what alike work took here, else by the cards."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sis import cli
from sis.config.cluster import Needs
from sis.config.recipe import Recipe
from sis.plan import Plan, load_plan
from sis.project.cost import Cost, CostPlan, cost_plan, critical_path
from sis.project.cost_text import format_hours, format_size, plan_data, plan_text
from sis.project.cost_work import Work, all_work
from sis.project.fit_defaults import fit_defaults

ROOT = Path(__file__).parents[2]
#: Rules of the workflow that are called otherwise than the steps of a plan.
_RULES = {
    "prepare": "prepare_split", "describe": "describe_dataset", "import": "import_checkpoint",
    "judge": "train_segmenter", "reference": "measure_reference",
}  # fmt: skip
CPU, GPU = {"device": "cpu", "cpu": "Old CPU", "threads": 1}, {"device": "cuda:0 Big GPU", "threads": 1}


def tiny(artefacts: Path, experiment: str = "tiny") -> Plan:
    return load_plan({"artefacts": str(artefacts), "results": str(artefacts / "results")}, experiment)


def manifest(path: Path, meta: dict[str, Any], run: dict[str, Any], size: int) -> None:
    """What a finished artefact leaves behind, as far as costs are concerned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"files": {"one": {"bytes": size}}, "meta": meta, "run": run}))


def trained(plan: Plan, name: str, steps: int, seconds: float, **more: Any) -> None:
    """A model of the experiment's own network, of another number of steps."""
    spec = next(s for s in plan.runs if s.name == "sdm-s1.5")
    facts = {**fit_defaults(spec.method.path), **spec.fit, "steps": steps, **more.pop("fit", {})}
    meta = {"method": "sdm", "dataset": "scenes_tiny", "fit": facts, "training_seconds": seconds, "parameters": 1000}
    path = Path(plan.root) / "models" / "scenes_tiny" / name / "model.safetensors.manifest.json"
    manifest(path, meta | more.pop("meta", {}), more.pop("run", CPU), 4000)


def cost_of(found: CostPlan, start: str) -> Cost:
    return next(cost for cost in found.costs if cost.work.title.startswith(start))


def test_nothing_finished_costs_what_the_cards_allow(tmp_path: Path) -> None:
    found = cost_plan(tiny(tmp_path))
    assert not found.finished and not any(cost.measured for cost in found.costs)
    training, sampling = cost_of(found, "train "), cost_of(found, "sample scenes_tiny/sdm-s1.5")
    assert training.job_hours == training.work.limit > 0 and training.gpu_hours == 0
    cpus = training.work.needs.cpus if training.work.needs else None
    assert training.cpu_hours == training.job_hours * (cpus or 0)
    images = sampling.work.images
    assert sampling.work.members == sampling.work.shards == math.ceil(images / 10)
    assert sampling.cpu_hours == sampling.work.limit * sampling.work.members
    assert sampling.storage == images * 32 * 32 * 3 and sampling.storage_source.startswith("at most")
    text = plan_text(found)
    assert "nothing is submitted" in text and "measured" not in text
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_every_artefact_is_counted_once_and_reads_only_what_something_makes(tmp_path: Path) -> None:
    for experiment in ("tiny", "tiny_latent", "sdm_table1"):
        work = all_work(tiny(tmp_path, experiment))
        paths = [one.path for one in work]
        assert len(set(paths)) == len(paths)
        beyond = {d for one in work for d in one.deps if one.step != "import"} - set(paths)
        assert not [d for d in beyond if str(tmp_path) in d], experiment


def test_a_training_is_measured_by_steps_pixels_and_batch(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    trained(plan, "sdm-00000001", steps=6, seconds=1800.0)
    cost = cost_of(cost_plan(plan), "train ")
    assert cost.job_hours == pytest.approx(1.0) and cost.source == "measured on Old CPU"
    assert cost.storage == 4000 + 2 * 20 * 1000
    trained(plan, "sdm-00000001", steps=6, seconds=1800.0, fit={"batch_size": 8})
    assert cost_of(cost_plan(plan), "train ").job_hours == pytest.approx(0.5)
    trained(plan, "sdm-00000001", steps=6, seconds=1800.0, meta={"size": [16, 16]})
    assert cost_of(cost_plan(plan), "train ").job_hours == pytest.approx(4.0)


@pytest.mark.parametrize(
    "other",
    [
        {"fit": {"width": 16}},
        {"fit": {"precision": "bf16"}},
        {"meta": {"method": "iidm"}},
        {"meta": {"size": [512, 512]}},
        {"meta": {"training_seconds": None}},
        {"run": GPU},
        {"run": {**CPU, "threads": 4}},
    ],
)
def test_other_networks_machines_and_sizes_measure_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    plan = tiny(tmp_path)
    trained(plan, "sdm-00000001", steps=6, seconds=1800.0, **other)
    assert cost_of(cost_plan(plan), "train ").source == "card's limit"


def test_sampling_is_measured_by_images_and_steps_and_shared_by_the_array(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    spec = next(s for s in plan.runs if s.name == "sdm-s1.5")
    meta = {"method": "sdm", "dataset": "scenes_tiny", "kind": "python", "fit": spec.fit, "size": [32, 32]}
    meta |= {"sample": {**spec.sample, "steps": 8}, "sampling_seconds": 720.0, "rows": 10}
    manifest(tmp_path / "images" / "scenes_tiny" / "sdm-00000001" / "manifest.json", meta, CPU, 5000)
    cost = cost_of(cost_plan(plan), "sample scenes_tiny/sdm-s1.5")
    images, members = cost.work.images, cost.work.members
    assert cost.measured and cost.cpu_hours == pytest.approx(0.01 * images * (cost.work.needs.cpus or 0))  # pyright: ignore
    assert cost.job_hours == pytest.approx(0.01 * images / members)
    assert cost.storage == 500 * images
    other = cost_of(cost_plan(plan), "sample scenes_tiny/sdm-s1.0")
    assert not other.measured, "other guidance is other work"
    for index in range(2):
        (Path(cost.work.path).parent / f"shard-{index:04d}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (Path(cost.work.path).parent / f"shard-{index:04d}.parquet").touch()
    assert cost_of(cost_plan(plan), "sample scenes_tiny/sdm-s1.5").work.members == members - 2


def test_an_array_has_no_more_jobs_than_the_site_allows(tmp_path: Path) -> None:
    site = {"array_size": 2, "array_jobs": 1}
    plan = load_plan({"artefacts": str(tmp_path), "slurm": site}, "tiny")
    cost = cost_of(cost_plan(plan), "sample scenes_tiny/sdm-s1.5")
    assert cost.work.members == 2 < cost.work.shards
    assert cost.hours == 2 * cost.job_hours, "one at a time"


def test_a_score_rides_in_the_job_that_measures(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    before = cost_of(cost_plan(plan), "score ").work
    measured = Path(before.deps[0])
    measured.parent.mkdir(parents=True)
    measured.touch()
    after = cost_of(cost_plan(plan), "score ").work
    assert (before.jobs, after.jobs) == (0, 1) and before.path == after.path


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["tiny", "tiny_latent"])
def test_snakemake_would_make_just_that(tmp_path: Path, experiment: str) -> None:
    """The work of a plan, counted by step, is what a dry-run of the workflow lists by rule."""
    roots = (f"artefacts={tmp_path / 'a'}", f"results={tmp_path / 'r'}", f"experiment={experiment}")
    words = (sys.executable, "-m", "snakemake", "--dry-run", "--profile", "workflow/profiles/local", "--config", *roots)
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    listed = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE))
    overrides = {"artefacts": str(tmp_path / "a"), "results": str(tmp_path / "r")}
    work = [one for one in all_work(load_plan(overrides, experiment)) if one.step != "decode"]
    own = Counter(one.spec.method.name for one in work if one.step == "sample" and one.spec and not one.members)
    expected = Counter({_RULES.get(one.step, one.step): 0 for one in work})
    expected.update(_RULES.get(one.step, one.step) for one in work)
    expected["sample"] -= own.total()
    others = {"all", "total", "demo_row_colours", *own, *(f"{name}_match" for name in own)}
    assert {name: int(count) for name, count in listed.items() if name not in others} == dict(expected)
    assert all(listed[name] == str(count) for name, count in own.items())


def test_finished_work_is_counted_apart(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    before = cost_plan(plan)
    done = before.path[0].work
    Path(done.path).parent.mkdir(parents=True)
    Path(done.path).touch()
    after = cost_plan(plan)
    assert len(after.costs) == len(before.costs) - 1 and after.finished == {done.step: 1}
    assert done.path not in {cost.work.path for cost in after.costs}


def test_a_damaged_manifest_measures_nothing(tmp_path: Path) -> None:
    plan = tiny(tmp_path)
    path = tmp_path / "models" / "scenes_tiny" / "sdm-00000001" / "model.safetensors.manifest.json"
    path.parent.mkdir(parents=True)
    for text in ("", "{", "[]", "{}", '{"files": 1, "meta": {}, "run": {}}'):
        path.write_text(text)
        assert not cost_of(cost_plan(plan), "train ").measured


def job(name: str, hours: float, deps: list[str], **more: Any) -> Cost:
    needs = Needs(gpus=2, nodes=1, tasks=2, cpus=3, memory_gb=1, hours=more.pop("limit", 100))
    work = Work(more.pop("step", "measure"), name, f"measure {name}", needs, tuple(deps), "d")
    return Cost(work, hours, hours, source=more.pop("source", "measured on x"))


def test_the_critical_path_is_the_longest_of_all_chains() -> None:
    draw = random.Random(7)
    for _ in range(30):
        names = [str(i) for i in range(9)]
        costs = {
            n: job(n, draw.randint(1, 9), draw.sample(names[:i], draw.randint(0, min(i, 3))))
            for i, n in enumerate(names)
        }

        def chains(name: str, costs: dict[str, Cost]) -> list[list[str]]:
            before = [c for dep in costs[name].work.deps for c in chains(dep, costs)]
            return [[*chain, name] for chain in before] or [[name]]

        every = [sum(costs[n].hours for n in chain) for name in names for chain in chains(name, costs)]
        path = critical_path(costs)
        assert sum(cost.hours for cost in path) == max(every)
        assert all(a.work.path in b.work.deps for a, b in itertools.pairwise(path))
    assert critical_path({}) == []


def test_work_over_its_limit_is_named_with_what_to_do() -> None:
    costs = [job("a", 137.0, [], limit=24, step="train"), job("b", 5.0, [], limit=4), job("c", 1.0, [])]
    found = CostPlan("big", costs, {}, [])
    assert [cost.work.path for cost in found.over_limit] == ["a", "b"]
    text = plan_text(found)
    assert "queues again 5 times" in text and "raise `cluster: {evaluate: {hours: ...}}`" in text
    assert "longest job: 137 hours" in text
    assert found.longest is costs[0]


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny", "--artefacts", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert {line.split("  ")[0] for line in lines[3:]} >= {"prepare", "train", "sample", "measure", "score", "total"}
    assert cli.main(["plan", "tiny", "--artefacts", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads(json.dumps(plan_data(cost_plan(load_plan({"artefacts": str(tmp_path)}, "tiny")))))
    assert facts["jobs"] == sum(one["jobs"] for one in facts["work"]) > 0
    assert facts["critical_path_hours"] == pytest.approx(sum(one["hours"] for one in facts["critical_path"]))
    assert cli.main(["plan", "tinny"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_defaults_are_those_of_the_classes() -> None:
    from sis.methods import autoencoder_vq, sdm

    for module in (autoencoder_vq, sdm):
        read = fit_defaults(Path(module.__file__ or ""))
        real = module.FitParams().model_dump()
        assert read == real
    assert fit_defaults(Path("card.yaml")) == {}
    assert Recipe().model_dump().items() <= {**real}.items()


@pytest.mark.parametrize(
    ("hours", "text"), [(0, "0"), (0.001, "<0.01"), (0.05, "0.05"), (4.25, "4.25"), (1371, "1,371")]
)
def test_hours_in_words(hours: float, text: str) -> None:
    assert format_hours(hours) == text


def test_sizes_in_words() -> None:
    assert [format_size(n) for n in (12, 1500, 2_000_000)] == ["12 B", "1.5 kB", "2 MB"]
