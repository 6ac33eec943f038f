# SPDX-License-Identifier: Apache-2.0
"""A method is trained into a model file: its facts, log and weights, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import small_training
import torch
from safetensors import safe_open
from torch import Tensor

from sis.data.manifest import read_manifest
from sis.data.schemas import TRAINING_LOG
from sis.data.tables import read_table
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.plan import RunSpec
from sis.training.prior import compute_prior
from sis.training.train import train_model

no_thread_is_left = small_training.no_thread_is_left


def test_a_trained_model_is_published_with_its_facts_and_its_log(
    tiny_model: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    manifest = read_manifest(tiny_model, "model")
    assert manifest.meta["model_id"] == tiny_spec("sdm").model_id
    assert manifest.meta["parameters"] > 0 and math.isfinite(manifest.meta["final_loss"])
    log = read_table(tiny_model.with_name("training.parquet"), TRAINING_LOG)
    assert log.column("step").to_pylist() == [0, 5] and log.column("images").to_pylist() == [4, 24]
    assert log.column("stage").to_pylist() == [1, 1] and log.column("sample_mean_red").null_count == 2
    assert read_manifest(tiny_model.with_name("training.parquet"), "training").meta == {
        "model_id": manifest.meta["model_id"]
    }
    assert sorted(p.name for p in tiny_model.parent.iterdir() if p.is_file()) == [
        "model.safetensors", "model.safetensors.manifest.json",
        "training.parquet", "training.parquet.manifest.json",
    ]  # fmt: skip
    left = sorted(p.name for p in (tiny_model.parent / "work").iterdir())
    assert left == [".training.lock", "model.safetensors.manifest.json.spare", "model.safetensors.spare"]


def test_a_model_file_says_itself_what_it_is(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    spec, method = tiny_spec("sdm"), build_method(tiny_spec("sdm"), "cpu", None, None)
    with safe_open(tiny_model, "pt") as file:
        facts = json.loads(file.metadata()["sis"])
    assert facts == {
        "method": "sdm", "version": method.VERSION, "model_id": spec.model_id, "dataset": "scenes_tiny",
        "size": [32, 32], "labels": "scenes", "label_width": method.context.labels.width, "edges": False, "seed": 0,
        "fit": method.fit_params.model_dump(), "weights": "averaged", "steps": 6,
    }  # fmt: skip
    assert facts["fit"]["diffusion_steps"] == 50 and facts["fit"]["width"] == 8


def test_raw_weights_are_kept_on_request_and_are_a_model_too(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, tiny_model: Path
) -> None:
    spec = tiny_spec("sdm", fit=tiny_spec("sdm").fit | {"keep_raw": True})
    train_model(spec, tiny_pairs / "train", tmp_path / "model.safetensors", "cpu")
    averaged, meta = load_tensors(tmp_path / "model.safetensors", "model")
    raw, raw_meta = load_tensors(tmp_path / "model-raw.safetensors", "model")
    assert (meta["weights"], raw_meta["weights"]) == ("averaged", "raw")
    assert all(torch.equal(v, averaged[k]) for k, v in load_tensors(tiny_model, "model")[0].items())
    assert averaged.keys() == raw.keys() and not all(torch.equal(averaged[k], raw[k]) for k in raw)
    with pytest.raises(SisError, match=r"the last weights of its training, .* averaged .* use model\.safetensors"):
        load_weights(build_method(spec, "cpu", None, None), tmp_path / "model-raw.safetensors")


def test_a_published_model_loads_into_its_network(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    method = build_method(tiny_spec("sdm"), "cpu", None, None)
    load_weights(method, tiny_model)
    tensors, _ = load_tensors(tiny_model, "model")
    assert method.network is not None
    assert all(torch.equal(v, tensors[k]) for k, v in method.network.state_dict().items())


def test_a_model_of_another_size_or_of_other_label_maps_is_refused_in_these_words(
    tiny_model: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = tiny_spec("sdm")

    def refusal(path: Path = tiny_model, **changes: object) -> str:
        card = spec.dataset.model_copy(update={"name": "other", **changes})
        method = build_method(dataclasses.replace(spec, dataset=card), "cpu", None, None)
        with pytest.raises(SisError) as caught:
            load_weights(method, path)
        return caught.value.what

    assert refusal(size=[64, 32]) == "the model was trained on images of 32x32, other has 32x64"
    assert refusal(labels="ade20k") == "the model was trained on 11 label channels, other has 151"
    assert refusal(edges=True) == "the model was trained on 11 label channels, other has 12"
    tensors, facts = load_tensors(tiny_model, "model")
    save_tensors(tensors, tmp_path / "m.safetensors", "model", facts | {"labels": "streets"}, {})
    assert refusal(tmp_path / "m.safetensors") == "the model was trained on the label table streets, other has scenes"


def test_weights_of_another_network_are_refused_by_name(tiny_model: Path, tiny_spec: Callable[..., RunSpec]) -> None:
    other = tiny_spec("sdm")
    method = build_method(tiny_spec("sdm", fit=other.fit | {"spade_hidden": 4}), "cpu", None, None)
    with pytest.raises(SisError, match=r"do not fit the network: .*shared.*\(8, .*the network has \(4, "):
        load_weights(method, tiny_model)
    method = build_method(tiny_spec("sdm", fit=other.fit | {"conditioning": "concat"}), "cpu", None, None)
    with pytest.raises(SisError, match="do not fit the network: missing"):
        load_weights(method, tiny_model)


def test_unknown_parameters_are_answered_with_the_nearest(tiny_spec: Callable[..., RunSpec]) -> None:
    with pytest.raises(
        SisError, match=r"unknown key 'stepps'.*run sdm, fit.*did you mean 'steps'|did you mean 'steps'"
    ):
        build_method(tiny_spec("sdm", fit={"stepps": 3}), "cpu", None, None)
    with pytest.raises(SisError, match="guidance"):
        build_method(tiny_spec("sdm", sample={"guidance": 0.5}), "cpu", None, None)


def test_initial_weights_follow_from_the_training_seed(tiny_spec: Callable[..., RunSpec]) -> None:
    def first_weights(seed: int) -> Tensor:
        torch.manual_seed(99 + seed)
        method = build_method(tiny_spec("sdm", seed=seed), "cpu", None, None)
        assert method.network is not None
        return torch.cat([p.flatten() for p in method.network.parameters()])

    assert torch.equal(first_weights(3), first_weights(3))
    assert not torch.equal(first_weights(3), first_weights(4))


def test_training_on_another_split_is_refused(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(SisError, match="training needs scenes_tiny/train"):
        train_model(tiny_spec("sdm"), tiny_pairs / "val", tmp_path / "model.safetensors", "cpu")


def test_methods_that_do_not_train_or_have_no_prior_say_so(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    with pytest.raises(SisError, match="palette does not train"):
        train_model(tiny_spec("palette"), tiny_pairs / "train", tmp_path / "m.safetensors", "cpu")
    with pytest.raises(SisError, match="sdm has no prior"):
        compute_prior(tiny_spec("sdm"), tiny_pairs / "train", tmp_path / "p.safetensors", "cpu")


def test_a_finished_model_is_not_trained_again(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    first = out.stat().st_mtime_ns
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    assert out.stat().st_mtime_ns == first
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(bytes(content))
    train_model(tiny_spec(), tiny_pairs / "train", out, "cpu")
    assert out.stat().st_mtime_ns != first and read_manifest(out, "model").artefact == "model"
