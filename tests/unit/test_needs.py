# SPDX-License-Identifier: Apache-2.0
"""What jobs need of a cluster comes from the right card, reaches Slurm in its words, and changes no id."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from project_copy import ROOT

from sis.config.cluster import USUAL, Needs, SlurmSite
from sis.config.experiment import Experiment
from sis.errors import SisError
from sis.methods import discovery
from sis.needs import complete, layered
from sis.plan import Plan, load_plan
from sis.plan_cluster import native_resources, setup


def planned(folder: Path, experiment: dict[str, object], device: str = "auto") -> Plan:
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({"name": "asked", "title": "Asked", **experiment}))
    return load_plan({"device": device}, experiment=str(path))


def ids(plan: Plan) -> list[tuple[str, str, str]]:
    return [(s.run_id, s.model_id, s.prior_id) for s in plan.every]


def test_the_first_card_that_says_something_counts() -> None:
    run, experiment = {"train": Needs(hours=3)}, {"train": Needs(hours=2, memory_gb=5)}
    found = layered(run, experiment, {"sample": Needs(gpus=4)})
    assert found["train"] == Needs(gpus=1, nodes=1, memory_gb=5, hours=3)
    assert found["sample"].gpus == 4 and found["sample"].hours == USUAL["sample"].hours
    assert found["evaluate"] == USUAL["evaluate"]


def test_a_cpu_asks_for_no_gpu_whatever_the_cards_say() -> None:
    assert {n.gpus for n in layered({"train": Needs(gpus=8)}, device="cpu").values()} == {0}


def test_a_job_is_complete_and_has_a_cpu_for_each_thread() -> None:
    one = complete("sample", 3, "run x", {})
    assert one == Needs(gpus=1, nodes=1, tasks=1, cpus=3, memory_gb=16, hours=8)
    four = complete("train", 1, "run x", {"train": Needs(gpus=4, nodes=2, cpus=6)})
    assert (four.tasks, four.nodes, four.cpus) == (4, 2, 6)
    assert complete("train", 1, "run x", {"train": Needs(gpus=0)}).tasks == 1


@pytest.mark.parametrize("needs", [Needs(nodes=2), Needs(tasks=2)])
def test_only_training_has_several_processes(needs: Needs) -> None:
    with pytest.raises(SisError, match=r"run x: .*sample.* several nodes or tasks"):
        complete("sample", 1, "run x", {"sample": needs})


def test_run_before_experiment_before_dataset_before_method(tmp_path: Path) -> None:
    base = {"datasets": {"ade20k": {"protocol": "ade20k_sdm"}}}
    method = planned(tmp_path, {**base, "runs": {"a": {"method": "sdm"}}}).runs[0]
    assert method.needs("train").memory_gb == 64 and method.needs("evaluate").memory_gb == 32
    asked = {"cluster": {"train": {"memory_gb": 50.0}}, "runs": {"a": {"method": "sdm"}}}
    asked["runs"]["b"] = {"method": "sdm", "cluster": {"train": {"memory_gb": 90.0, "gpus": 2}}}
    plan = planned(tmp_path, {**base, **asked})
    assert [(s.needs("train").memory_gb, s.needs("train").tasks) for s in plan.runs] == [(50, 1), (90, 2)]
    assert plan.needs("prepare", "ade20k").cpus == 16 and plan.needs("train", "ade20k").memory_gb == 50
    scenes = planned(tmp_path, {"datasets": {"scenes": {"protocol": "scenes"}}, "runs": {"a": {"method": "sdm"}}})
    assert scenes.runs[0].needs("train").gpus == 0 and scenes.needs("prepare", "scenes").cpus == 4


def test_where_jobs_run_changes_no_id_and_no_comparison(tmp_path: Path) -> None:
    base = {"datasets": {"scenes_tiny": {"protocol": "scenes-tiny"}}}
    runs = {"sdm": {"method": "sdm"}, "noise": {"method": "segment_noise"}, "mean": {"method": "class_mean"}}
    plain = planned(tmp_path, {**base, "runs": runs})
    asked = {name: {**run, "cluster": {"sample": {"hours": 99.0}}} for name, run in runs.items()}
    other = planned(tmp_path, {**base, "runs": asked, "cluster": {"train": {"gpus": 8}}})
    assert ids(plain) == ids(other) and plain.runs == other.runs
    assert other.runs[0].needs("sample").hours == 99 and other.runs[0].needs("train").gpus == 8


def test_ids_stay_those_of_before_clusters() -> None:
    """Recorded when cards could not speak of clusters: artefacts that lie on disks keep their names."""
    tiny = {s.name: (s.run_id, s.model_id) for s in load_plan(experiment="tiny").runs}
    assert tiny["sdm-s1.5"] == ("sdm-s1.5-74a6d0e3", "sdm-b8316fc1")
    assert tiny["segment-noise"] == ("segment-noise-2e1dd142", "")
    paper = {s.name: s.model_id for s in load_plan(experiment="sdm_table1").runs if s.model_id}
    assert paper["sdm-celebamask"] == "sdm-2e8d2d03"


def test_cards_say_their_needs_outside_of_their_identity() -> None:
    plan = load_plan(experiment="tiny")
    card = plan.card("scenes_tiny")
    assert card.cluster and card.identity() == card.model_copy(update={"cluster": {}}).identity()
    method = next(s.method.card for s in plan.runs if s.name == "segment-noise")
    assert method is not None and method.cluster["sample"].gpus == 0
    assert method.identity() == method.model_copy(update={"cluster": {}}).identity()


def test_seeds_of_a_group_may_ask_for_different_nodes() -> None:
    run = {"method": "sdm", "group": "g"}
    runs = {"a": {**run, "seed": 0}, "b": {**run, "seed": 1, "cluster": {"train": {"hours": 5.0}}}}
    facts = {"name": "x", "title": "x", "datasets": {"scenes": {"protocol": "scenes"}}, "runs": runs}
    assert Experiment.model_validate(facts).runs["b"].cluster["train"].hours == 5


def test_every_method_says_what_it_needs_and_controls_need_no_gpu() -> None:
    found = discovery.methods()
    python = [m for m in found.values() if m.kind == "python"]
    assert len(python) > 10 and not [m.name for m in python if not m.cluster]
    assert [m.name for m in python if m.trains and m.cluster["train"].gpus != 1] == ["prompts"]
    controls = [m for m in found.values() if m.role == "control" and not m.trains and m.kind == "python"]
    assert len(controls) >= 5 and {m.cluster["sample"].gpus for m in controls} == {0}


@pytest.mark.parametrize(
    ("written", "fault"),
    [('{"train": {"gpu": 1}}', "CLUSTER: train.gpu"), ('{"trian": {"gpus": 1}}', "CLUSTER: trian"),
     ('{"train": {"hours": -1}}', "CLUSTER: train.hours")],
)  # fmt: skip
def test_a_method_that_asks_for_what_there_is_not_is_refused(tmp_path: Path, written: str, fault: str) -> None:
    path = tmp_path / "odd.py"
    path.write_text(f'"""Odd."""\n\n\nclass Odd(Method):\n    CLUSTER = {written}\n\n    def sample(self): ...\n')
    with pytest.raises(SisError, match=fault):
        discovery._describe(path)


def test_a_native_job_is_asked_for_in_words_of_the_executor() -> None:
    site = SlurmSite(
        partition="gpu", cpu_partition="cpu", account="lab", qos="long", gpu_type="a100", constraint="ib",
        exclude="n[3-4]", extra={"reservation": "paper two"},
    )  # fmt: skip
    needs = {"with": Needs(gpus=2, cpus=8, memory_gb=1.5, hours=0.51), "without": Needs(gpus=0, cpus=1)}
    asked = native_resources(site, lambda wildcards: needs[wildcards.gpus])

    def of(gpus: str) -> dict[str, object]:
        wildcards = SimpleNamespace(gpus=gpus)
        return {name: value(wildcards) if callable(value) else value for name, value in asked.items()}

    assert of("with") == {
        "slurm_partition": "gpu", "slurm_account": "lab", "qos": "long", "constraint": "ib", "gres": "gpu:a100:2",
        "cpus_per_task": 8, "mem_mb": 1536, "runtime": 31,
        "slurm_extra": "--exclude='n[3-4]' --reservation='paper two'",
    }  # fmt: skip
    assert of("without")["slurm_partition"] == "cpu" and of("without")["gres"] == ""


def test_what_a_site_leaves_empty_is_not_asked_for() -> None:
    asked = native_resources(SlurmSite(), lambda wildcards: Needs(gpus=1, cpus=1), hours=0.25)
    assert set(asked) == {"gres", "cpus_per_task", "mem_mb", "runtime"}
    gres, runtime = asked["gres"], asked["runtime"]
    assert callable(gres) and callable(runtime) and (gres(None), runtime(None)) == ("gpu:1", 15)


def test_the_sites_commands_run_inside_jobs_alone() -> None:
    assert setup(SlurmSite()) == ""
    text = setup(SlurmSite(setup=["module load cuda", 'export X="${Y}"']))
    assert text.format() == 'if [ -n "${SLURM_JOB_ID:-}" ]; then module load cuda; export X="${Y}"; fi; '


def test_the_slurm_profile_gives_training_and_sampling_to_the_launcher() -> None:
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.v9+.yaml").read_text())
    assert profile["set-resources"] == {"train": {"launcher": "slurm"}, "sample": {"launcher": "slurm"}}
    threads = max(s.threads for e in sorted((ROOT / "config/experiments").glob("*.yaml"))
                  for s in load_plan(experiment=e.stem).every)  # fmt: skip
    assert profile["cores"] >= max(threads, USUAL["prepare"].cpus or 0), "cores caps the threads of submitted jobs"


def test_a_spec_keeps_its_needs_when_it_is_changed() -> None:
    spec = load_plan(experiment="tiny").runs[0]
    assert dataclasses.replace(spec, name="other").needs("train") == spec.needs("train")
