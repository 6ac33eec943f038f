# SPDX-License-Identifier: Apache-2.0
"""The LPIPS backbone: equal to the package, checked files only, stand-ins that say so."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.lpips_backbone import STAND_IN, LpipsBackbone, lpips_backbone, lpips_record
from evaluators.weights import WeightCard, WeightStore
from sis.errors import SisError

LISTED = Path(__file__).parents[2] / "config" / "weights.yaml"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> LpipsBackbone:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return lpips_backbone("alex", WeightStore.open(tmp_path_factory.mktemp("weights"), LISTED))


def store(folder: Path, data: bytes, sha256: str | None = None) -> WeightStore:
    """A weights folder with one file, listed under its own sha256 or another."""
    (folder / "alex.pth").write_bytes(data)
    prefix = (sha256 or hashlib.sha256(data).hexdigest())[:8]
    card = WeightCard(
        name="lpips-alex",
        file="alex.pth",
        url="https://example.org",
        bytes=None,
        sha256_prefix=prefix,
        licence="none",
        purpose="test",
    )
    return WeightStore(folder, (card,))


def test_pairs_equal_the_packages_own_loop(stand_in: LpipsBackbone) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 72, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        theirs = [stand_in.net(x[i : i + 1], x[j : j + 1]).item() for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(stand_in.pairwise(images), theirs, atol=1e-6)
    assert min(theirs) > 1e-3
    np.testing.assert_array_equal(stand_in.pairwise(images[[0, 0]]), [0.0])


def test_the_stand_in_is_seeded_and_leaves_the_global_state(tmp_path: Path, stand_in: LpipsBackbone) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = lpips_backbone("alex", WeightStore.open(tmp_path, LISTED))
    assert torch.equal(before, torch.get_rng_state())
    key = "net.slice3.6.weight"
    assert torch.equal(again.net.state_dict()[key], stand_in.net.state_dict()[key])


def test_an_absent_file_is_named_as_a_stand_in(tmp_path: Path) -> None:
    record, stand_in = lpips_record("alex", WeightStore.open(tmp_path, LISTED))
    assert stand_in == STAND_IN == "seeded-random-backbone"
    assert STAND_IN in record.name


def test_a_checked_file_fills_the_backbone(tmp_path: Path, stand_in: LpipsBackbone) -> None:
    ours = stand_in.net.net.state_dict()
    theirs = {"features." + k.split(".", 1)[1]: torch.full_like(v, 0.5) for k, v in ours.items()}
    torch.save(theirs | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "made.pth")
    weights = store(tmp_path, (tmp_path / "made.pth").read_bytes())
    backbone = lpips_backbone("alex", weights)
    assert all((v == 0.5).all() for v in backbone.net.net.state_dict().values())
    record, name = lpips_record("alex", weights)
    assert name == ""
    assert record.sha256 == hashlib.sha256((tmp_path / "alex.pth").read_bytes()).hexdigest()


def test_a_file_with_another_sha256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"sha256 begins with .*, expected deadbeef"):
        lpips_record("alex", store(tmp_path, b"altered", "deadbeef"))


@pytest.mark.parametrize("kind", ["text", "foreign", "pickle"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made.pth"
    if kind == "text":
        path.write_bytes(b"not weights at all")
    else:
        torch.save({"features.0.weight": torch.zeros(1)} if kind == "foreign" else Path("/"), path)
    reason = "the checkpoint does not fit the network; 9 missing" if kind == "foreign" else "nothing in it was run"
    with pytest.raises(SisError, match=reason):
        lpips_backbone("alex", store(tmp_path, path.read_bytes()))


def test_the_list_of_weights_is_strict(tmp_path: Path) -> None:
    cards = WeightStore.open(tmp_path, LISTED).cards
    assert {c.name for c in cards} >= {"lpips-alex", "lpips-vgg", "lpips-squeeze", "inception-fid"}
    for c in cards:
        if c.sha256_prefix:
            assert c.sha256_prefix in c.file and c.url and c.url.endswith(c.file)
    with pytest.raises(SisError, match=r"unknown weights 'lpips-alx'.*did you mean 'lpips-alex'"):
        WeightStore(tmp_path, cards).find("lpips-alx")
    broken = tmp_path / "weights.yaml"
    broken.write_text("- {name: x, fil: y}\n")
    with pytest.raises(SisError, match="entry 1"):
        WeightStore.open(tmp_path, broken)
