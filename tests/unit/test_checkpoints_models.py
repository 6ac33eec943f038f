# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others as models of a run: imported, sampled from, inspected and exported as they came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_checkpoint
import torch
from small_checkpoint import LABELS, SMALL
from torch import Tensor

from sis.checkpoints import sdm
from sis.checkpoints.artefact import Target, export_model, formats, import_model, inspect
from sis.data.image_set import pixel_hashes
from sis.data.manifest import file_sha256, read_manifest
from sis.data.tensors import load_tensors
from sis.data.weight_files import write_weights
from sis.errors import SisError
from sis.methods.build import build_method
from sis.nets.patches import PatchedUNet
from sis.plan import RunSpec
from sis.sampling.run import SampleJob, sample_run

theirs = small_checkpoint.theirs


@pytest.fixture
def spec(tiny_spec: Callable[..., RunSpec]) -> RunSpec:
    return tiny_spec("sdm", fit=SMALL | {"diffusion_steps": 50}, sample={"steps": 2}, samples_per_map=1)


def target_of(spec: RunSpec) -> tuple[PatchedUNet, Target]:
    with torch.device("meta"):
        method = build_method(spec, "meta", None, None)
    facts = Target("sdm", spec.model_id, spec.dataset.name, method.fit_params.model_dump(), method.context.labels.width)
    return method.network, facts


def test_every_format_of_the_package_is_found_by_its_stem() -> None:
    found = {name: known.METHOD for name, known in formats().items()}
    theirs = {"control_ldm": "scp_diff", "ldm_unet": "latent_diffusion", "ldm_vae": "autoencoder_kl", "sdm": "sdm"}
    assert theirs.items() <= found.items() and "artefact" not in found and "ldm_names" not in found


def test_an_imported_checkpoint_is_a_model_that_sampling_accepts_and_that_exports_back(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_pairs: Path, tmp_path: Path
) -> None:
    file, model = tmp_path / "ema_0.9999_best.pt", tmp_path / "model.safetensors"
    write_weights(theirs, file)
    manifest = import_model(file, "raw", *target_of(spec), model)
    assert manifest.meta["source"] == {
        "file": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size, "format": "sdm", "weights": "raw",
    }  # fmt: skip
    assert manifest.meta["model_id"] == spec.model_id and manifest.meta["label_width"] == LABELS
    assert manifest.meta["parameters"] == sum(v.numel() for v in theirs.values())
    assert manifest.meta["fit"]["width"] == 32 and manifest.meta["dataset"] == "scenes_tiny"
    images = sample_run(SampleJob(spec, tiny_pairs / "val", tmp_path / "images", model))
    assert images is not None and len(set(pixel_hashes(tmp_path / "images").values())) == 16
    digest = export_model(model, "sdm", tmp_path / "back.pt")
    assert digest == file_sha256(file) == file_sha256(tmp_path / "back.pt"), "bit for bit the file that came"


def test_an_imported_model_carries_the_facts_of_a_trained_one(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_model: Path, tmp_path: Path
) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    manifest = import_model(tmp_path / "a.pt", "ema", *target_of(spec), tmp_path / "model.safetensors")
    trained = read_manifest(tiny_model, "model").meta
    assert {"method", "model_id", "key", "dataset", "fit", "label_width", "parameters"} <= set(manifest.meta) & set(
        trained
    )


def test_the_same_file_imported_twice_is_the_same_model_and_another_statement_another_key(
    spec: RunSpec, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    ways = ("ema", "ema", "raw", "not stated")
    found = [
        import_model(tmp_path / "a.pt", w, *target_of(spec), tmp_path / f"{i}.safetensors") for i, w in enumerate(ways)
    ]
    keys = [m.meta["key"] for m in found]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    with pytest.raises(SisError, match=r"weights are 'best'"):
        import_model(tmp_path / "a.pt", "best", *target_of(spec), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"patch": 2}, "no network with patch: 2"),
        ({"predict": "v"}, "no network with predict: v"),
        ({"conditioning": "concat"}, "no network with conditioning: concat"),
        ({"groups": 8}, "no network with groups: 8"),
        ({"width": 16}, "no network with width: 16"),
    ],
)
def test_a_run_whose_network_the_authors_do_not_have_takes_no_checkpoint_and_gives_none(
    spec: RunSpec, theirs: dict[str, Tensor], tmp_path: Path, fit: dict[str, Any], words: str
) -> None:
    other = replace(spec, fit=spec.fit | fit)
    write_weights(theirs, tmp_path / "a.pt")
    with pytest.raises(SisError, match=words):
        import_model(tmp_path / "a.pt", "ema", *target_of(other), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
    network, facts = target_of(other)
    with pytest.raises(SisError, match=words):
        sdm.from_model(network.state_dict(), facts.fit, tmp_path / "model.safetensors")


def test_checkpoints_of_unknown_formats_and_for_other_methods_are_refused(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_model: Path, tmp_path: Path
) -> None:
    write_weights({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    network, facts = target_of(spec)
    with pytest.raises(
        SisError, match=r"no known format \(control_ldm, .*sdm.*\); the first is fc\.weight \[.*other\.pt\]"
    ):
        import_model(tmp_path / "other.pt", "ema", network, facts, tmp_path / "m.safetensors")
    write_weights(theirs, tmp_path / "a.pt")
    with pytest.raises(SisError, match="a checkpoint of iidm and sdm, the run's method is real"):
        import_model(tmp_path / "a.pt", "ema", network, replace(facts, method="real"), tmp_path / "m.safetensors")
    with pytest.raises(SisError, match=r"no checkpoint format 'spm' - did you mean 'sdm'\?"):
        export_model(tiny_model, "spm", tmp_path / "out.pt")


def test_inspection_tells_the_network_that_a_file_fits(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    facts = inspect(tmp_path / "a.pt")
    assert facts["format"] == "iidm, sdm"  # the same network for two methods
    assert facts["label channels"] == LABELS and facts["image channels"] == 3
    assert facts["fit"] == SMALL | {"learn_sigma": True}
    assert facts["image size"] == "both sides divisible by 2"
    assert facts["parameters"] == f"{sum(v.numel() for v in theirs.values()):,}"
    assert facts["sha256"] == file_sha256(tmp_path / "a.pt") and facts["tensors"] == f"{len(theirs)}, float32"


def test_inspection_of_a_checkpoint_with_a_hole_names_the_file_and_the_hole(
    theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    write_weights({k: v for k, v in theirs.items() if k != "out.0.bias"}, tmp_path / "a.pt")
    with pytest.raises(SisError, match=r"1 missing: out\.0\.bias \[.*a\.pt\]"):
        inspect(tmp_path / "a.pt")


def test_loaded_weights_are_the_tensors_of_the_file(theirs: dict[str, Tensor], spec: RunSpec, tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    import_model(tmp_path / "a.pt", "ema", *target_of(spec), tmp_path / "model.safetensors")
    tensors, _ = load_tensors(tmp_path / "model.safetensors", "model")
    assert torch.equal(tensors["unet.stem.weight"], theirs["input_blocks.0.0.weight"])
    assert torch.equal(tensors["unet.middle.1.qkv.weight"][..., 0], theirs["middle_block.1.qkv.weight"])
