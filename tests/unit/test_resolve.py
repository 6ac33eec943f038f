# SPDX-License-Identifier: Apache-2.0
"""Names of runs and models become what they are: roles, changes by dataset, ensembles, and refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sis.errors import SisError
from sis.plan import Plan, load_plan

DATASET = "scenes_tiny"
TEXT = {"method": "prompts", "fit": {"stand_in": True, "tokens": 4, "width": 8}}
USES = {"autoencoder": "encoder", "base": "base", "text": "text"}


def models(**changes: Any) -> dict[str, Any]:
    base = {"method": "latent_diffusion", "uses": {"autoencoder": "encoder", "text": "text"}}
    return {"encoder": {"method": "autoencoder_kl"}, "text": TEXT, "base": base} | changes


def plan(root: Path, runs: dict[str, Any], **changes: Any) -> Plan:
    path = root / "config" / "experiments" / "latent.yaml"
    facts = {"name": "latent", "title": "Latent", "datasets": {DATASET: {"protocol": "scenes-tiny"}}}
    path.write_text(yaml.safe_dump(facts | {"models": models(), "runs": runs} | changes))
    return load_plan(experiment="latent")


def run(**changes: Any) -> dict[str, Any]:
    return {"method": "scp_diff", "uses": USES} | changes


def iidm(**changes: Any) -> dict[str, Any]:
    return {"method": "iidm", "uses": {"autoencoder": "encoder"}, "fit": {"steps": 9, "keep": [3, 6]}} | changes


def test_a_run_reads_what_its_roles_are_needed_for(project_copy: Path) -> None:
    found = plan(project_copy, {"joint": run()})
    spec = found.spec(DATASET, "joint")
    encoder, base, text = (found.spec(DATASET, name) for name in ("encoder", "base", "text"))
    latents = found.latents(DATASET, encoder.model_id)
    assert found.training_inputs(DATASET, spec.model_id) == {
        "uses_base": found.model(DATASET, base.model_id),
        "uses_text": found.model(DATASET, text.model_id),
        "latents": latents,
    }
    assert found.sampling_inputs(DATASET, spec.run_id) == {
        "pairs": found.pairs(DATASET, "val"),
        "model": found.model(DATASET, spec.model_id),
        "prior": found.prior(DATASET, spec.prior_id),
        "uses_autoencoder": found.model(DATASET, encoder.model_id),
        "uses_text": found.model(DATASET, text.model_id),
    }
    assert found.latents_input(spec) == {"latents": latents}
    assert f"--uses base={found.model(DATASET, base.model_id)}" in found.training_options(DATASET, spec.model_id)
    assert [s.name for s in found.runs] == ["joint"]
    assert {s.name for s in found.parts} == {"encoder", "base", "text"}


def test_a_model_changes_with_what_it_uses_and_a_prior_with_the_latents_alone(project_copy: Path) -> None:
    first = plan(project_copy, {"joint": run()}).spec(DATASET, "joint")
    trained = plan(project_copy, {"joint": run(fit={"steps": 7})}).spec(DATASET, "joint")
    counted = plan(project_copy, {"joint": run(prior={"n_images": 7})}).spec(DATASET, "joint")
    other = models(encoder={"method": "autoencoder_kl", "seed": 1})
    encoded = plan(project_copy, {"joint": run()}, models=other).spec(DATASET, "joint")
    assert (trained.model_id != first.model_id, trained.prior_id == first.prior_id) == (True, True)
    assert (counted.model_id == first.model_id, counted.prior_id != first.prior_id) == (True, True)
    assert counted.run_id != first.run_id
    assert len({encoded.model_id, first.model_id, encoded.prior_id, first.prior_id}) == 4


def test_mirrored_pictures_are_encoded_only_where_they_are_used(project_copy: Path) -> None:
    found = plan(project_copy, {"a": run(), "b": run(fit={"flip": True})})
    encoder = found.spec(DATASET, "encoder").model_id
    assert [found.spec(DATASET, name).latents_id for name in "ab"] == [encoder, f"{encoder}-mirrored"]
    assert {found.encoder(DATASET, latents).model_id for latents in found.latents_ids()} == {encoder}


def test_a_run_that_starts_from_photographs_is_a_control(project_copy: Path) -> None:
    found = plan(project_copy, {"x0": run(sample={"prior": "x0"}), "joint": run(sample={"prior": "joint"})})
    shown = {s.name: (s.role, s.shows_photographs) for s in found.runs}
    assert shown == {"x0": ("control", True), "joint": ("contestant", False)}


def test_a_dataset_changes_runs_groups_and_models(project_copy: Path) -> None:
    changes = {"group": {"sample": {"guidance": 7.5}}, "encoder": {"fit": {"latent_channels": 3}}}
    datasets = {DATASET: {"protocol": "scenes-tiny", "samples_per_map": 3, "changes": changes}}
    runs = {"group": run(seeds=[0, 1], sample={"mu": 0.5})}
    found = plan(project_copy, runs, datasets=datasets)
    assert [s.sample for s in found.runs] == [{"mu": 0.5, "guidance": 7.5}] * 2
    assert found.spec(DATASET, "encoder").fit == {"latent_channels": 3}
    assert {s.samples_per_map for s in found.runs} == {3}


def test_an_ensemble_reads_scores_and_models_of_its_members(project_copy: Path) -> None:
    mean = {"method": "iidm", "ensemble": {"members": ["at3", "last"], "best": 1, "by": "fd"}}
    found = plan(project_copy, {"at3": iidm(at_step=3), "last": iidm(), "mean": mean})
    early, last, spec = (found.spec(DATASET, name) for name in ("at3", "last", "mean"))
    assert early.model_id == last.model_id != spec.model_id
    assert early.run_id != last.run_id
    assert spec.fit == last.fit and spec.uses == last.uses
    assert found.ensembles() == [spec.model_id] and spec.model_id not in found.models(imported=False)
    scores = [found.scores(DATASET, s.run_id, "scenes-tiny") for s in (early, last)]
    model = found.model(DATASET, last.model_id)
    kept = model.replace("model.safetensors", "model-step0000003.safetensors")
    assert found.ensemble_inputs(DATASET, spec.model_id) == {"scores": scores, "models": [model, model]}
    assert found.ensemble_options(DATASET, spec.model_id).endswith(f"--models {kept} {model}")
    assert f"--model {kept} " in found.sampling_options(DATASET, early.run_id)


def refused(root: Path, words: str, runs: dict[str, Any], **changes: Any) -> None:
    with pytest.raises(SisError, match=words) as caught:
        plan(root, runs, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "of_run"),
    [
        ("needs `uses: {base: ...}`", {"uses": {"autoencoder": "encoder", "text": "text"}}),
        ("nothing is called 'bass'.*did you mean 'base'", {"uses": USES | {"base": "bass"}}),
        ("no role 'bases'.*did you mean 'base'", {"uses": USES | {"bases": "base"}}),
        ("text is filled by prompts; encoder is autoencoder_kl", {"uses": USES | {"text": "encoder"}}),
        ("joint uses joint.*end the circle", {"uses": USES | {"base": "joint"}}),
        ("samples from step 5, which its training does not keep", {"at_step": 5}),
    ],
)
def test_wrong_roles_are_refused_in_one_line(project_copy: Path, words: str, of_run: dict[str, Any]) -> None:
    refused(project_copy, words, {"joint": run(**of_run)})


def test_one_autoencoder_serves_a_run_and_its_base(project_copy: Path) -> None:
    two = models(other={"method": "autoencoder_kl", "seed": 1})
    words = "'joint' has the autoencoder other, its base was trained with encoder"
    refused(project_copy, words, {"joint": run(uses=USES | {"autoencoder": "other"})}, models=two)


def test_parts_are_models_and_models_train(project_copy: Path) -> None:
    refused(project_copy, "prompts makes no images.*`models:`", {"text2": TEXT})
    refused(project_copy, "palette trains nothing", {"joint": run()}, models=models(text={"method": "palette"}))
    refused(project_copy, "share a name", {"base": run()})


@pytest.mark.parametrize(
    ("words", "ensemble"),
    [
        ("no run 'at4'.*did you mean 'at3'", {"members": ["at4", "last"], "by": "fd"}),
        ("the best 3 of 2 runs", {"members": ["at3", "last"], "best": 3, "by": "fd"}),
        ("no metric 'fdd'.*did you mean 'fd'", {"members": ["at3", "last"], "by": "fdd"}),
        ("averages networks that are alike, other has", {"members": ["last", "other"], "by": "fd"}),
    ],
)
def test_wrong_ensembles_are_refused(project_copy: Path, words: str, ensemble: dict[str, Any]) -> None:
    mean = {"method": "iidm", "ensemble": ensemble}
    runs = {"at3": iidm(at_step=3), "last": iidm(), "other": iidm(fit={"steps": 8}), "mean": mean}
    refused(project_copy, words, runs)


def test_figures_and_changes_name_what_there_is(project_copy: Path) -> None:
    card = {"title": "A figure", "x": "mu", "metrics": ["fd"], "dashed": ["nobody"]}
    refused(
        project_copy, "figures.mu.dashed: no run, group or model is called 'nobody'", {"a": run()}, figures={"mu": card}
    )
    datasets = {DATASET: {"protocol": "scenes-tiny", "changes": {"nobody": {"fit": {"steps": 1}}}}}
    refused(project_copy, "no run, group or model is called 'nobody'", {"a": run()}, datasets=datasets)
