# SPDX-License-Identifier: Apache-2.0
"""Priors and shards as files: what they are of goes with them, and nothing that differs is merged or sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from priors_example import Split, params

from sis.data.provenance import RunRecord
from sis.data.tensors import load_tensors, save_tensors
from sis.errors import SisError
from sis.priors.draws import drawn, released
from sis.priors.files import (
    PriorFacts,
    merge_files,
    prior_tensors,
    read_prior,
    read_statistics,
    save_statistics,
    statistics_tensors,
)
from sis.priors.params import StatisticsParams
from sis.priors.prior import Prior
from sis.priors.statistics import Statistics, accumulate

SPLIT = Split.made(20, 4)


def facts(**changed: Any) -> PriorFacts:
    given = {"dataset": "scenes", "pairs": "p1", "labels": "l1", "classes": 5, "size": [32, 48], "autoencoder": "ae-1",
             "params": params(), "images": "i1", "count": 20}  # fmt: skip
    return PriorFacts.model_validate({**given, **changed})


def shards(folder: Path, count: int, **changed: Any) -> list[Path]:
    draws, paths = drawn(SPLIT.ids, params()), []
    for number in range(count):
        part = draws.shard(number, count)
        found = accumulate(SPLIT.read, SPLIT.ids, part, 5)
        its = facts(count=len(part.images), shards=[number], of_shards=count, **changed)
        paths.append(folder / f"shard-{number}.safetensors")
        save_statistics(found, its, paths[-1], RunRecord.start())
    return paths


def whole() -> Statistics:
    return accumulate(SPLIT.read, SPLIT.ids, drawn(SPLIT.ids, params()), 5)


def test_shards_in_any_order_of_names_give_the_same_bits(tmp_path: Path) -> None:
    paths = shards(tmp_path, 3)
    found, its = merge_files(paths)
    again, _ = merge_files([paths[2], paths[0], paths[1]])
    for name, array in found.joint.arrays().items():
        np.testing.assert_array_equal(again.joint.arrays()[name], array)
        np.testing.assert_allclose(array, whole().joint.arrays()[name], rtol=1e-12, atol=1e-12)
    assert (its.count, its.shards, its.of_shards) == (20, [0, 1, 2], 3)


def test_a_finished_prior_goes_through_a_file_with_its_facts(tmp_path: Path) -> None:
    prior, path = Prior.of(whole()), tmp_path / "prior.safetensors"
    save_tensors(prior_tensors(prior, facts()), path, "prior", {}, RunRecord.start())
    again, its = read_prior(load_tensors(path, "prior")[0], path)
    assert its == facts()
    labels = torch.from_numpy(SPLIT.small[:3])
    for one, two in zip(prior.maps(labels, "joint"), again.maps(labels, "joint"), strict=True):
        assert torch.equal(one, two)


def test_the_released_statistics_keep_their_three_streams() -> None:
    found = accumulate(SPLIT.read, SPLIT.ids, released(20, 30), 5)
    tensors = statistics_tensors(found, facts(params=params(fidelity="release")))
    again, its = read_statistics(tensors)
    assert its.params.fidelity == "release"
    for one, two in (
        (found.categorical, again.categorical),
        (found.spatial, again.spatial),
        (found.joint, again.joint),
    ):
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(two.arrays()[name], array)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dataset": "ade20k"}, "different dataset cannot be merged: ade20k and scenes"),
        ({"size": [64, 96]}, "different resolution cannot be merged: 64x96 and 32x48"),
        ({"autoencoder": "ae-2"}, "different autoencoder cannot be merged: ae-2 and ae-1"),
        ({"labels": "l2"}, "different label table cannot be merged"),
        ({"pairs": "p2"}, "different training pairs cannot be merged"),
        ({"images": "i2"}, "different drawn images cannot be merged"),
        ({"params": StatisticsParams(latents="sample")}, "different parameters cannot be merged"),
    ],
)
def test_shards_of_anything_else_are_not_merged(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    (tmp_path / "other").mkdir()
    mine, other = shards(tmp_path, 2), shards(tmp_path / "other", 2, **changed)
    with pytest.raises(SisError, match=says) as refused:
        merge_files([other[0], mine[1]])
    assert "\n" not in str(refused.value)


def test_a_shard_is_merged_once_and_all_of_them_are_needed(tmp_path: Path) -> None:
    paths = shards(tmp_path, 3)
    with pytest.raises(SisError, match="shard 1 of the prior statistics is there twice"):
        merge_files([paths[0], paths[1], paths[1]])
    some, its = merge_files([paths[0], paths[2]])
    with pytest.raises(SisError, match="lacks shard 1 of 3"):
        prior_tensors(Prior.of(some), its)
    with pytest.raises(SisError, match="different number of shards"):
        facts(of_shards=2, shards=[0]).merge(facts(of_shards=3, shards=[1]))
    with pytest.raises(SisError, match="no prior statistics to merge"):
        merge_files([])


@pytest.mark.parametrize(
    ("used", "says"),
    [
        ({"dataset": "ade20k"}, "prior of another dataset: scenes, sampling uses ade20k"),
        ({"size": (64, 64)}, "prior of another resolution: 32x48, sampling uses 64x64"),
        ({"autoencoder": "sd15"}, "prior of another autoencoder: ae-1, sampling uses sd15"),
        ({"labels": "l9"}, "prior of another label table: l1, sampling uses l9"),
    ],
)
def test_a_prior_of_something_else_is_not_sampled(used: dict[str, Any], says: str) -> None:
    facts().require(dataset="scenes", labels="l1", size=(32, 48), autoencoder="ae-1")
    facts().require()
    with pytest.raises(SisError, match=says) as refused:
        facts().require(**used, where="prior.safetensors")
    assert "[prior.safetensors]" in str(refused.value) and "compute the prior again" in str(refused.value)


def test_tensors_that_are_no_prior_are_refused() -> None:
    good = prior_tensors(Prior.of(whole()), facts())
    with pytest.raises(SisError, match="lacks 'facts'"):
        read_prior({"count": torch.zeros(3), "mean": torch.zeros(3, 3)})
    with pytest.raises(SisError, match=r"lacks 'spatial\.std'"):
        read_prior({name: value for name, value in good.items() if name != "spatial.std"})
    with pytest.raises(SisError, match="facts of this prior cannot be read"):
        read_prior({**good, "facts": good["facts"][:-1]})
    with pytest.raises(SisError, match="has 5 classes, its facts say 6"):
        read_prior({**good, "facts": prior_tensors(Prior.of(whole()), facts(classes=6))["facts"]})
    with pytest.raises(SisError, match="joint prior is not finite"):
        read_prior({**good, "joint.mean": good["joint.mean"] + torch.inf})
    with pytest.raises(SisError, match=r"lacks 'joint\.m2'"):
        read_statistics(good)


def test_a_flipped_bit_in_a_shard_is_found(tmp_path: Path) -> None:
    paths = shards(tmp_path, 2)
    content = bytearray(paths[1].read_bytes())
    content[-9] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(SisError, match="sha256 differs"):
        merge_files(paths)
