# SPDX-License-Identifier: Apache-2.0
"""The whole DAG of the latent methods: parts, encoded splits, priors, references, an ensemble, a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from project_copy import Project, copy_project

from sis.data.image_set import pixel_hashes
from sis.data.manifest import read_manifest
from sis.data.tensors import load_tensors

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

EXPERIMENT = "tiny_latent"
SNAKEMAKE = ("snakemake", "all", "priors", "--profile", "workflow/profiles/local", "--cores", "2", "--config",
             f"experiment={EXPERIMENT}")  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_project(tmp_path_factory.mktemp("latent"))
    project.run(*SNAKEMAKE, timeout=1800)
    return project


def sets(project: Project) -> dict[str, dict[tuple[str, int], str]]:
    found = project.folder.glob("artefacts/images/scenes_tiny/*/manifest.json")
    return {read_manifest(p.parent, "images").meta["run"]: pixel_hashes(p.parent) for p in found}


def test_every_run_is_scored_and_shown(done: Project) -> None:
    scores = pd.read_parquet(done.folder / f"results/{EXPERIMENT}/scores.parquet")
    assert set(scores.run) == {"normal", "joint", "x0", "lora", "iidm-early", "iidm", "mean", "real"}
    assert scores.query("metric == 'accuracy' and class_name == ''").value.notna().all()
    roles = scores.groupby("run").role.first()
    assert set(roles[roles == "control"].index) == {"real", "x0"}
    assert (done.folder / f"results/{EXPERIMENT}/gallery/scenes_tiny-levels.png").stat().st_size > 5000


def test_runs_that_start_elsewhere_differ_and_share_one_model_and_prior(done: Project) -> None:
    hashes = sets(done)
    assert len({tuple(sorted(hashes[name].items())) for name in ("normal", "joint", "x0")}) == 3
    models = {p.parent.name for p in done.folder.glob("artefacts/models/scenes_tiny/scp_diff-*/model.safetensors")}
    priors = {p.parent.name for p in done.folder.glob("artefacts/priors/scenes_tiny/scp_diff-*/prior.safetensors")}
    assert len(models) == len(priors) == 1


def test_the_ensemble_is_the_mean_of_two_checkpoints_of_one_training(done: Project) -> None:
    facts = [
        read_manifest(p, "model").meta for p in done.folder.glob("artefacts/models/scenes_tiny/iidm-*/*.safetensors")
    ]
    assert sorted(f["steps"] for f in facts if "ensemble" not in f) == [3, 6]
    (mean,) = [f["ensemble"] for f in facts if "ensemble" in f]
    assert mean["chosen"] == ["iidm-early", "iidm"] and mean["by"] == "fd"


def test_a_prior_is_described_in_numbers_and_pictures(done: Project) -> None:
    (report,) = done.folder.glob("artefacts/priors/scenes_tiny/*/report/prior.json")
    found = json.loads(report.read_text())
    assert found["facts"]["count"] == 16 and found["label_maps"] == 16
    assert report.with_name("prior.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_has_nothing_to_do(done: Project) -> None:
    assert "Nothing to be done" in done.run(*SNAKEMAKE, "-n").stdout


def test_shards_of_a_prior_in_any_order_are_the_prior(done: Project, tmp_path: Path) -> None:
    prior = next(done.folder.glob("artefacts/priors/scenes_tiny/scp_diff-*/prior.safetensors"))
    latents = next(
        p for p in done.folder.glob("artefacts/latents/scenes_tiny/autoencoder_kl-*") if "mirrored" not in p.name
    )
    head = ["sis", "prior", "--experiment", EXPERIMENT, "--dataset", "scenes_tiny", "--run", "joint", "--device", "cpu"]
    pairs = ["--pairs", str(done.folder / "artefacts/pairs/scenes_tiny/train"), "--latents", str(latents)]
    parts = [tmp_path / f"part-{i}.safetensors" for i in range(3)]
    for i, part in enumerate(parts):
        done.run(*head, *pairs, "--shard", f"{i}/3", "--out", str(part))
    merged = tmp_path / "merged.safetensors"
    done.run(*head, "--merge", *map(str, reversed(parts)), "--out", str(merged))
    ours, whole = load_tensors(merged, "prior")[0], load_tensors(prior, "prior")[0]
    assert ours.keys() == whole.keys()
    for name in ours:
        if name != "facts":
            assert (ours[name] - whole[name]).abs().max() <= 1e-6
