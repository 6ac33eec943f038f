# SPDX-License-Identifier: Apache-2.0
"""The plan: names follow from parameters, equal work has one name, and no name is a matter of chance."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sis.errors import SisError
from sis.methods.discovery import methods
from sis.plan import Plan, RunSpec, load_plan

DATASET = "scenes_tiny"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return load_plan(experiment="tiny")


def edit(root: Path, **changes: object) -> None:
    path = root / "config" / "experiments" / "tiny.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_the_same_files_give_the_same_names(plan: Plan) -> None:
    again = load_plan(experiment="tiny")
    assert [s.run_id for s in again.runs] == [s.run_id for s in plan.runs]
    assert again.artefacts() == plan.artefacts()


def test_the_names_of_the_tiny_experiment_do_not_depend_on_the_machine(plan: Plan) -> None:
    assert all(re.fullmatch(r"[a-z0-9_.-]+-[0-9a-f]{8}", s.run_id) for s in plan.runs)
    assert len({s.run_id for s in plan.runs}) == len(plan.runs)


def test_runs_that_differ_in_sampling_only_share_a_model(plan: Plan) -> None:
    one, two = plan.spec(DATASET, "sdm-s1.5"), plan.spec(DATASET, "sdm-s1.0")
    assert one.model_id == two.model_id != ""
    assert one.run_id != two.run_id


@pytest.mark.parametrize(
    ("change", "model", "images"),
    [
        ({"seed": 1}, True, True),
        ({"fit": {"width": 12}}, True, True),
        ({"threads": 2}, True, True),
        ({"sample": {"steps": 7}}, False, True),
        ({"sample_seed": 9}, False, True),
        ({"samples_per_map": 5}, False, True),
        ({"batch_size": 3}, False, True),
        ({"shard_size": 7}, False, False),
        ({"title": "Another title"}, False, False),
    ],
)
def test_a_name_changes_exactly_with_what_decides_the_bits(
    tiny_spec: Callable[..., RunSpec], change: dict, model: bool, images: bool
) -> None:
    before, after = tiny_spec("sdm"), tiny_spec("sdm", **change)
    assert (before.model_id != after.model_id) == model
    assert (before.run_id != after.run_id) == images


def test_methods_without_training_or_prior_have_no_such_artefact(plan: Plan) -> None:
    palette, mean = plan.spec(DATASET, "palette"), plan.spec(DATASET, "class-mean")
    assert (palette.model_id, palette.prior_id) == ("", "")
    assert mean.model_id == "" and mean.prior_id.startswith("class_mean-")
    assert set(plan.sampling_inputs(DATASET, palette.run_id)) == {"pairs"}
    assert set(plan.sampling_inputs(DATASET, mean.run_id)) == {"pairs", "prior"}
    assert set(plan.sampling_inputs(DATASET, plan.spec(DATASET, "sdm-s1.0").run_id)) == {"pairs", "model"}


def test_deterministic_methods_are_sampled_once_a_map(plan: Plan) -> None:
    assert plan.spec(DATASET, "real").samples_per_map == 1
    assert plan.spec(DATASET, "sdm-s1.0").samples_per_map == 2


def test_rule_methods_join_by_themselves_when_the_experiment_says_all(plan: Plan) -> None:
    rules = {n for n, m in methods().items() if m.kind == "rule"}
    assert rules and rules <= {s.name for s in plan.runs}


def test_rule_methods_stay_out_by_default(project_copy: Path) -> None:
    edit(project_copy, rule_methods="none")
    assert not {s.method.kind for s in load_plan(experiment="tiny").runs} & {"rule"}


def test_a_run_is_found_by_name_and_by_id(plan: Plan) -> None:
    spec = plan.spec(DATASET, "palette")
    assert plan.spec(DATASET, spec.run_id) is spec


def test_unknown_names_are_answered_with_the_nearest(plan: Plan) -> None:
    with pytest.raises(SisError, match=r"no run 'palete'.*did you mean 'palette'"):
        plan.spec(DATASET, "palete")
    with pytest.raises(SisError, match=r"no dataset 'scenes_tinny'.*did you mean 'scenes_tiny'"):
        plan.spec("scenes_tinny", "palette")


def test_an_unknown_method_names_the_run_and_the_nearest(project_copy: Path) -> None:
    edit(project_copy, runs={"mine": {"method": "sdmm"}})
    with pytest.raises(SisError, match=r"no method called 'sdmm'.*run mine.*did you mean 'sdm'"):
        load_plan(experiment="tiny")


def test_a_protocol_of_another_dataset_is_refused(project_copy: Path) -> None:
    edit(project_copy, datasets={DATASET: {"protocol": "scenes"}})
    with pytest.raises(SisError, match="protocol scenes judges scenes, not scenes_tiny"):
        load_plan(experiment="tiny")


def test_two_files_with_one_name_are_refused(project_copy: Path) -> None:
    (project_copy / "workflow" / "rules" / "methods" / "palette.smk").write_text('"""Palette."""\n')
    with pytest.raises(SisError, match="two files define the method 'palette'"):
        load_plan(experiment="tiny")


def test_a_method_is_found_by_its_file_alone(project_copy: Path) -> None:
    (project_copy / "config" / "methods" / "fresh.yaml").write_text("kind: images\ntitle: Fresh\npath: data/fresh\n")
    edit(project_copy, runs={"fresh": {"method": "fresh"}})
    spec = load_plan(experiment="tiny").spec(DATASET, "fresh")
    assert (spec.method.kind, spec.title) == ("images", "Fresh")


def test_a_broken_method_file_is_named_with_its_line(project_copy: Path) -> None:
    (project_copy / "sis" / "methods" / "broken.py").write_text('"""Broken."""\n\nclass X(:\n')
    with pytest.raises(SisError, match=r"not valid Python.*broken\.py:3"):
        load_plan(experiment="tiny")


def test_every_artefact_lies_under_the_root_of_the_settings() -> None:
    plan = load_plan({"artefacts": "elsewhere/"}, "tiny")
    paths = [path for _, path in plan.artefacts()]
    assert all(path.startswith("elsewhere/") and "//" not in path for path in paths)
    assert len(set(paths)) == len(paths)


def test_patterns_match_these_names_and_nothing_else(plan: Plan) -> None:
    pattern = plan.pattern(["sdm-s1.5", "real"])
    assert re.fullmatch(pattern, "sdm-s1.5") and re.fullmatch(pattern, "real")
    assert not re.fullmatch(pattern, "sdm-s1x5")
    assert not re.search(plan.pattern([]), "") and not re.search(plan.pattern([]), "anything")


def test_a_run_can_be_made_again_by_one_shell_command(plan: Plan) -> None:
    spec = plan.spec(DATASET, "sdm-s1.5")
    command = plan.command(spec)
    assert command.startswith("sis sample --experiment tiny --dataset scenes_tiny --run sdm-s1.5 ")
    assert f"--model {plan.model(DATASET, spec.model_id)}" in command
    assert plan.command(plan.spec(DATASET, "retrieval")).startswith("snakemake ")


def test_the_commands_words_are_options_of_the_command_line(plan: Plan) -> None:
    from sis.cli import build_parser

    for spec in plan.runs:
        program, *words = plan.command(spec).split()
        if program == "sis":
            assert build_parser().parse_args(words).run_name == spec.name


def test_the_judge_changes_with_its_training_and_its_dataset(project_copy: Path) -> None:
    before = load_plan(experiment="tiny").judge("scenes-tiny")
    path = project_copy / "config" / "protocols" / "scenes-tiny.yaml"
    path.write_text(path.read_text().replace("steps: 100", "steps: 101"))
    after = load_plan(experiment="tiny").judge("scenes-tiny")
    assert before != after
    path.write_text(path.read_text().replace("class_rule: union", "class_rule: gt"))
    assert load_plan(experiment="tiny").judge("scenes-tiny") == after


def test_words_of_a_dataset_change_no_name(project_copy: Path) -> None:
    before = load_plan(experiment="tiny")
    card = project_copy / "config" / "datasets" / "scenes_tiny.yaml"
    card.write_text(card.read_text().replace("title: scenes", "title: Another title"))
    after = load_plan(experiment="tiny")
    assert after.runs[0].dataset.title == "Another title"
    assert [s.run_id for s in after.runs] == [s.run_id for s in before.runs]


def test_raw_data_are_found_below_the_data_root_or_where_the_settings_say() -> None:
    root = Path(load_plan(experiment="tiny").data_root(DATASET))
    assert root.parts[-2:] == ("data", DATASET) and root.is_absolute()
    moved = load_plan({"data": "/big/disk"}, experiment="tiny")
    assert moved.data_root(DATASET) == f"/big/disk/{DATASET}"
    single = load_plan({"roots": {DATASET: "/elsewhere/scenes"}}, experiment="tiny")
    assert single.data_root(DATASET) == "/elsewhere/scenes"


def test_the_prepare_target_makes_the_datasets_of_the_settings_or_of_the_experiment() -> None:
    assert load_plan(experiment="tiny").prepared() == [f"artefacts/datasets/{DATASET}/card.md"]
    chosen = load_plan({"prepare": ["scenes", DATASET]}, experiment="tiny")
    assert chosen.prepared() == ["artefacts/datasets/scenes/card.md", f"artefacts/datasets/{DATASET}/card.md"]
    with pytest.raises(SisError, match=r"no dataset called 'scene'.*'scenes'"):
        load_plan({"prepare": ["scene"]}, experiment="tiny").prepared()


def test_a_control_that_shows_photographs_is_refused_where_there_are_none(project_copy: Path) -> None:
    card = project_copy / "config" / "datasets" / "scenes_tiny.yaml"
    card.write_text(card.read_text().replace("val: {count: 16}", "val: {count: 16, photographs: false}"))
    with pytest.raises(SisError, match=r"run 'real' shows real photographs, scenes_tiny/val has none"):
        load_plan(experiment="tiny")


def test_a_checkpoint_is_imported_where_a_run_names_one_and_changes_no_other_name(project_copy: Path) -> None:
    before = load_plan(experiment="tiny")
    runs = yaml.safe_load((project_copy / "config" / "experiments" / "tiny.yaml").read_text())["runs"]
    runs["theirs"] = {**runs["sdm-s1.5"], "checkpoint": "weights/sdm.pt", "checkpoint_weights": "ema"}
    edit(project_copy, runs=runs)
    plan = load_plan(experiment="tiny")
    theirs, ours = plan.spec(DATASET, "theirs"), plan.spec(DATASET, "sdm-s1.5")
    assert theirs.model_id != ours.model_id == before.spec(DATASET, "sdm-s1.5").model_id
    assert plan.models(imported=True) == [theirs.model_id] and theirs.model_id not in plan.models(imported=False)
    assert plan.checkpoint(DATASET, theirs.model_id) == "weights/sdm.pt"
    assert plan.checkpoint_option(DATASET, theirs.model_id) == "--weights ema"
    runs["palette"] = {"method": "palette", "checkpoint": "weights/sdm.pt"}
    edit(project_copy, runs=runs)
    with pytest.raises(SisError, match="run 'palette' names a checkpoint, but method palette has no model"):
        load_plan(experiment="tiny")
