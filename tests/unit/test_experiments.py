# SPDX-License-Identifier: Apache-2.0
"""Experiments of the papers: they plan what they say, share what is equal, and meet no number they must not meet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluators.definition import called
from sis.config import files
from sis.config.protocols import ProtocolCard
from sis.config.strict_yaml import validate
from sis.plan import Plan, load_plan
from sis.publish.experiment import _published
from sis.publish.published import PlannedRun, load_published, numbers_beside

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "config" / "experiments"
PAPERS = ["sdm_table1", "sdm_table3", "sdm_table4", "sdm_table5"]
LATENT_PAPERS = ["scp_table1", "scp_table2", "scp_table3", "iidm_table1", "iidm_table2"]
SCENES = ["scenes_sdm_table4", "scenes_sdm_table5", "scenes_sdm_steps"]

#: Experiment -> datasets, trained models, image sets.
COUNTS = {
    "sdm_table1": (4, 4, 20),
    "sdm_table3": (4, 4, 20),
    "sdm_table4": (1, 4, 12),
    "sdm_table5": (2, 2, 16),
    "scenes_sdm_table4": (1, 12, 29),
    "scenes_sdm_table5": (1, 3, 17),
    "scenes_sdm_steps": (1, 3, 35),
}


def plans(names: list[str]) -> dict[str, Plan]:
    return {name: load_plan(experiment=name) for name in names}


def contestants(plan: Plan) -> set[tuple[str, str]]:
    return {(s.dataset.name, s.run_id) for s in plan.runs if s.model_id}


def models(plan: Plan) -> set[tuple[str, str]]:
    return {(s.dataset.name, s.model_id) for s in plan.runs if s.model_id}


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_every_experiment_makes_a_plan_with_distinct_artefacts(name: str) -> None:
    plan = load_plan(experiment=name)
    paths = [path for _, path in plan.artefacts()]
    assert plan.runs and len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", COUNTS)
def test_an_experiment_trains_and_samples_as_often_as_its_header_counts(name: str) -> None:
    plan = load_plan(experiment=name)
    jobs = [stage for stage, _ in plan.artefacts()]
    datasets, trained, sampled = COUNTS[name]
    assert len(plan.experiment.datasets) == datasets
    assert (jobs.count("train"), jobs.count("sample")) == (trained, sampled)
    # Beside each image set: its partials and scores; for each dataset the reference and, on scenes, a segmenter.
    assert jobs.count("evaluate") == 2 * sampled + datasets * (2 if name in SCENES else 1)


@pytest.mark.parametrize("name", [*PAPERS, *SCENES])
def test_a_header_tells_command_hardware_hours_and_what_to_expect(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text().split("name:")[0]
    assert f"# Run:      snakemake --profile workflow/profiles/local --config experiment={name}\n" in head
    for word in ("Hardware", "Hours", "Expect"):
        assert re.search(rf"^# {word}: +\S", head, re.MULTILINE), word
    assert "not measured" in " ".join(head.replace("#", " ").split())


@pytest.mark.parametrize("name", PAPERS)
def test_a_header_names_the_papers_numbers_of_its_runs(name: str) -> None:
    """Every number of SDM in the table that some run stands for is spelt in the header."""
    head = (FOLDER / f"{name}.yaml").read_text().split("name:")[0]
    spelt = set(re.findall(r"\d+\.\d+", head))
    table = load_published([name])
    ours = table.loc[table["method"] == "sdm"]
    wanted = {f"{row.value:.3f}" if row.metric == "lpips" else f"{row.value:.1f}" for row in ours.itertuples()}
    assert wanted and wanted <= spelt


@pytest.mark.parametrize("name", [*PAPERS, *SCENES])
def test_parameters_of_every_run_are_ones_that_its_method_knows(name: str) -> None:
    from sis.methods.sdm import FitParams, SampleParams

    for spec in load_plan(experiment=name).runs:
        if spec.method.name == "sdm":
            assert validate(FitParams, spec.fit, spec.name).learn_sigma
            assert validate(SampleParams, spec.sample, spec.name).fast is True


@pytest.mark.parametrize("name", PAPERS)
def test_networks_and_training_of_the_papers_experiments_are_the_published_ones(name: str) -> None:
    from sis.methods.sdm import FitParams

    for spec in load_plan(experiment=name).runs:
        if spec.method.name != "sdm":
            continue
        fit = validate(FitParams, spec.fit, spec.name)
        assert (fit.width, fit.multipliers, fit.blocks, fit.attention) == (256, [1, 1, 2, 2, 4, 4], 2, [8, 16, 32])
        assert (fit.patch, fit.predict, fit.diffusion_steps, fit.schedule) == (1, "eps", 1000, "linear")
        assert (fit.stages, fit.batch_size, fit.ema, fit.drop_rate, fit.precision) == (2, 32, 0.9999, 0.2, "fp16")
        rates = (2e-5, 2e-5) if spec.dataset.name == "celebamask_hq" else (1e-4, 2e-5)
        assert (fit.learning_rate, fit.finetune_rate) == rates
        unguided = {"concat-s1.0", "enc-s1.0", "sdm-s1.0", "enc-dec-s1.0"}
        scale = 1.0 if spec.name in unguided else 2.0 if spec.dataset.name == "cityscapes" else 1.5
        assert spec.sample["guidance"] == scale


def test_the_papers_experiments_share_models_and_images() -> None:
    made = plans(PAPERS)
    one, three, four, five = (models(made[name]) for name in PAPERS)
    assert three == one and five < one and len(four & one) == 1
    drawn = {name: contestants(plan) for name, plan in made.items()}
    assert len(drawn["sdm_table1"] & drawn["sdm_table4"]) == 1  # guided Dec on ADE20K
    assert len(drawn["sdm_table3"] & drawn["sdm_table5"]) == 2  # 1,000 steps on ADE20K and COCO-Stuff
    protocols = {name: {s.protocol.name for s in plan.runs} for name, plan in made.items()}
    assert len(set.union(*protocols.values())) == 4
    assert {plan.judge(s.protocol.name) for plan in made.values() for s in plan.runs} == {""}


def test_table_4_is_the_full_grid_of_structure_and_guidance() -> None:
    for name, seeds in (("sdm_table4", [0]), ("scenes_sdm_table4", [0, 1, 2])):
        specs = [s for s in load_plan(experiment=name).runs if s.method.name == "sdm"]
        cells = {(s.fit.get("conditioning", "spade"), s.sample["guidance"], s.seed) for s in specs}
        structures = ("concat", "spade_encoder", "spade", "spade_both")
        assert cells == {(c, g, n) for c in structures for g in (1.0, 1.5) for n in seeds}
        assert len(specs) == len(cells)
        fits = [{k: v for k, v in s.fit.items() if k != "conditioning"} for s in specs]
        assert all(fit == fits[0] for fit in fits)


def test_samplers_are_compared_at_equal_numbers_of_evaluations() -> None:
    wanted = {
        "sdm_table5": {("ddpm", 1000), ("dpm_solver", 100), ("ddpm", 100), ("ddim", 100)},
        "scenes_sdm_table5": {("ddpm", 1000), ("dpm_solver", 100), ("ddpm", 100), ("ddim", 100)},
        "scenes_sdm_steps": {("ddpm", 250)} | {(s, n) for s in ("ddpm", "ddim", "dpm_solver") for n in (10, 20, 50)},
    }
    for name, expected in wanted.items():
        plan = load_plan(experiment=name)
        specs = [s for s in plan.runs if s.method.name == "sdm"]
        assert {(s.sample.get("sampler", "ddpm"), s.sample["steps"]) for s in specs} == expected
        assert {s.sample["guidance"] for s in specs} == {1.5}
        assert all(str(s.sample["steps"]) in s.title.replace(",", "") for s in specs)
        assert len({(s.dataset.name, s.model_id) for s in specs}) == COUNTS[name][1]


def test_experiments_on_scenes_share_their_models_and_stand_beside_no_paper() -> None:
    made = plans(SCENES)
    assert models(made["scenes_sdm_table5"]) == models(made["scenes_sdm_steps"]) < models(made["scenes_sdm_table4"])
    for plan in made.values():
        assert plan.experiment.published == []
        groups: dict[str, set[int]] = {}
        for run in plan.experiment.runs.values():
            if run.method == "sdm":
                groups.setdefault(run.group, set()).add(run.seed)
        assert all(seeds == {0, 1, 2} for seeds in groups.values()) and "" not in groups


@pytest.mark.parametrize("name", PAPERS)
def test_every_number_of_sdm_in_a_papers_table_has_the_run_that_reproduces_it(name: str) -> None:
    plan = load_plan(experiment=name)
    table = load_published([name])
    runs = [PlannedRun(s.dataset.name, s.name, s.method.name) for s in plan.runs]
    beside = numbers_beside(table, plan.experiment, runs)
    ours = table.loc[table["method"] == "sdm"]
    assert sorted(beside["value"]) == sorted(ours["value"])
    assert not beside.duplicated(["dataset", "variant", "metric"]).any()


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_no_number_of_a_judge_trained_here_meets_a_papers(name: str) -> None:
    """Speed apart, all that our judges measure goes by names that the experiment keeps free of the papers' numbers."""
    plan = load_plan(experiment=name)
    beside = _published(plan)
    met = set() if beside is None else set(zip(beside["dataset"], beside["metric"].str.casefold(), strict=True))
    assert bool(met) == (name in (*PAPERS, *LATENT_PAPERS))
    for dataset, use in plan.experiment.datasets.items():
        card = files.named("protocols", use.protocol, ProtocolCard)
        columns = {called(entry).casefold() for entry in card.entries()}
        if name in (*PAPERS, *LATENT_PAPERS):
            paper = name.partition("_")[0]
            assert card.trained_segmenter() is None and use.protocol.endswith(f"_{paper}")
            shared = {column for place, column in met if place == dataset} & columns
            assert shared and all(column.endswith(f"-{paper}") or column == "fid" for column in shared)
            assert "fid" not in shared or paper == "iidm"
            continue
        assert not {(dataset, column) for column in columns} & met
        inception = {called(entry).casefold() for entry in card.entries() if entry.card.features.name == "inception"}
        assert not {column for column in columns - inception if column.startswith(("fid", "kid"))}


def test_protocols_of_real_datasets_name_the_local_judge_and_its_limits() -> None:
    for dataset in ("cityscapes", "ade20k", "celebamask_hq", "coco_stuff_inst"):
        plain, diverse = (files.named("protocols", f"{dataset}{kind}", ProtocolCard) for kind in ("", "_diversity"))
        assert plain.segmenter == diverse.segmenter
        assert (plain.segmenter.display, plain.segmenter.images) == ("local-unet", 4000)
        assert set(diverse.metrics) - set(plain.metrics) == {"lpips", "ms_ssim"}
        assert diverse.samples.diversity == 10 and plain.reference.split == plain.split == "val"
        assert all(side % 8 == 0 for side in files.dataset_card(dataset).size)
