# SPDX-License-Identifier: Apache-2.0
"""Encoded splits: every latent by its image's id, shards that an interrupted run keeps, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sis.data.latents import LatentSet
from sis.data.pairs import PairSet
from sis.data.prepare import prepare
from sis.errors import SisError
from sis.methods.build import NO_FILES, ready
from sis.methods.discovery import methods
from sis.project.check import example_spec
from sis.run_spec import RunSpec
from sis.training import encode
from sis.training.encode import encode_split
from sis.training.train import train_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Path]:
    """A tiny trained autoencoder and the pairs of scenes_tiny/train."""
    folder, spec = tmp_path_factory.mktemp("latents"), example_spec(methods()["autoencoder_kl"])
    prepare(spec.dataset, "train", folder, folder / "train")
    train_model(spec, folder / "train", folder / "model.safetensors", "cpu")
    return spec, folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_SHARD", 20)


@pytest.mark.usefixtures("small")
def test_every_latent_is_that_of_its_photograph(place: tuple[RunSpec, Path], tmp_path: Path) -> None:
    spec, folder = place
    encode_split(spec, folder / "train", folder / "model.safetensors", True, tmp_path, "cpu")
    latents, pairs = LatentSet.open(tmp_path), PairSet.open(folder / "train")
    assert latents.ids == pairs.ids and latents.autoencoder == spec.model_id and len(latents) == len(pairs)
    network = ready(spec, folder / "model.safetensors", NO_FILES, "cpu").network
    for place_of, flip in ((0, False), (19, True), (20, False), (len(pairs) - 1, True)):
        image = torch.from_numpy(pairs.get(place_of).image.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            wanted = network.moments(image.flip(-1) if flip else image)
        found = latents.of([pairs.ids[place_of]], torch.tensor([flip]))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_an_interrupted_run_keeps_its_shards(
    place: tuple[RunSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, folder = place
    whole = encode_split(spec, folder / "train", folder / "model.safetensors", False, tmp_path / "whole", "cpu")
    encoded, done = encode._encode, list[int]()

    def interrupted(*arguments: object) -> object:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return encoded(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_split(spec, folder / "train", folder / "model.safetensors", False, tmp_path / "part", "cpu")
    counted: list[int] = []
    monkeypatch.setattr(encode, "_encode", lambda *a: (counted.append(1), encoded(*a))[1])
    again = encode_split(spec, folder / "train", folder / "model.safetensors", False, tmp_path / "part", "cpu")
    assert again.files == whole.files
    assert len(counted) == len(whole.files) - 1


def test_what_cannot_be_is_refused(place: tuple[RunSpec, Path], tmp_path: Path) -> None:
    spec, folder = place
    encode_split(spec, folder / "train", folder / "model.safetensors", False, tmp_path, "cpu")
    latents = LatentSet.open(tmp_path)
    with pytest.raises(SisError, match="no latent of 'nobody'"):
        latents.of(["nobody"])
    with pytest.raises(SisError, match=r"no mirrored pictures.*flip: false"):
        latents.of(latents.ids[:1], torch.tensor([True]))
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(SisError, match="sha256 differs"):
        LatentSet.open(tmp_path)


def test_a_network_that_encodes_nothing_is_refused(place: tuple[RunSpec, Path], tmp_path: Path) -> None:
    folder = place[1]
    spec = example_spec(methods()["sdm"])
    spec = replace(spec, dataset=place[0].dataset)
    train_model(spec, folder / "train", tmp_path / "model.safetensors", "cpu")
    with pytest.raises(SisError, match="sdm is no autoencoder"):
        encode_split(spec, folder / "train", tmp_path / "model.safetensors", False, tmp_path / "out", "cpu")
