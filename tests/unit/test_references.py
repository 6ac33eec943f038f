# SPDX-License-Identifier: Apache-2.0
"""Reference photographs on their way to a method: the right ones, and one line where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sis.data.pairs import PairSet
from sis.errors import SisError
from sis.methods.contract import MapBatch
from sis.methods.discovery import methods
from sis.project.check import example_spec
from sis.sampling.python_method import batch_maker
from sis.sampling.run import SampleJob, sample_run


class Copier:
    """Gives back the photographs that it was handed."""

    network = None

    def sample(self, maps: MapBatch, noise: object) -> torch.Tensor:
        assert maps.references is not None
        return maps.references


def test_a_method_sees_the_photograph_that_the_pair_names(tiny_pairs: Path) -> None:
    val, train = PairSet.open(tiny_pairs / "val"), PairSet.open(tiny_pairs / "train")
    make = batch_maker(Copier(), val, 4, 0, "cpu", train)  # type: ignore[arg-type]
    keys = [(image_id, 0) for image_id in val.ids[:3]]
    for image, (image_id, _) in zip(make(keys), keys, strict=True):
        assert np.array_equal(image, train.by_id(val.by_id(image_id).reference_id).image)


def test_a_label_map_without_reference_is_refused_in_one_line(tiny_pairs: Path) -> None:
    val = PairSet.open(tiny_pairs / "val")
    bare = replace(val.by_id(val.ids[0]), reference_id="")
    pairs = SimpleNamespace(size=val.size, policy=val.policy, by_id=lambda _: bare)
    make = batch_maker(Copier(), pairs, 1, 0, "cpu", val)  # type: ignore[arg-type]
    with pytest.raises(SisError, match=f"no reference photograph for {bare.image_id}.*names `references:`") as caught:
        make([(bare.image_id, 0)])
    assert "\n" not in str(caught.value)


def test_sampling_asks_for_what_it_needs(tiny_pairs: Path, tmp_path: Path) -> None:
    spec = example_spec(methods()["iidm"])
    with pytest.raises(SisError, match=r"uses the autoencoder .*give --uses autoencoder=MODEL"):
        sample_run(SampleJob(spec, tiny_pairs / "val", tmp_path / "out"))
    uses = {"autoencoder": tmp_path / "absent.safetensors"}
    with pytest.raises(SisError):
        sample_run(SampleJob(spec, tiny_pairs / "val", tmp_path / "out", uses=uses))
    assert not (tmp_path / "out" / "manifest.json").exists()
