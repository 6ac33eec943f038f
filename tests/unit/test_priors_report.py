# SPDX-License-Identifier: Apache-2.0
"""The report of a prior: its figures are counted, its pictures are the priors decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from priors_example import params, plain_prior
from torch import Tensor
from torch.nn import functional as F

from sis.data.images import decode_png
from sis.errors import SisError
from sis.priors.files import PriorFacts
from sis.priors.params import Policy
from sis.priors.report import Masks, measure, pictures, write_report

COUNTS = np.zeros((4, 2, 3), int)
COUNTS[0], COUNTS[1, 0, 0], COUNTS[2, 0, 1] = 9, 1, 1500
LABELS = torch.tensor([[[1, 2, 0], [1, 2, 3]], [[0, 0, 0], [0, 0, 3]]])
MASKS = Masks(("a", "b"), LABELS, np.arange(12, dtype=np.uint8).reshape(4, 3) * 20, ("sky", "road", "car"))


def decode(latents: Tensor) -> Tensor:
    """The first channel as grey: joint 10, class 100 to 103 and spatial 1000 become -0.9, ..., 1."""
    assert latents.shape[0] == 1, "one latent at a time"
    grey = (latents[:, :1] / 100 - 1).clamp(-1, 1)
    return F.interpolate(grey, scale_factor=64, mode="nearest").expand(-1, 3, -1, -1)


def test_cells_and_tokens_are_counted() -> None:
    found = measure(plain_prior(COUNTS), [LABELS[:1], LABELS[1:]], Policy())
    of_cells = {row["count"]: row["share"] for row in found["cells_by_count"] if row["share"]}
    assert found["cells"] == 24
    assert of_cells == pytest.approx({"0": 16 / 24, "1": 1 / 24, "5 to 9": 6 / 24, "1000 or more": 1 / 24})
    of_tokens = {row["count"]: row["share"] for row in found["tokens_by_count"] if row["share"]}
    assert of_tokens == pytest.approx({"0": 4 / 12, "1": 1 / 12, "5 to 9": 6 / 12, "1000 or more": 1 / 12})
    assert found["label_maps"] == 2 and found["falling_back"] == pytest.approx(4 / 12)
    assert found["sources"]["joint"] == pytest.approx({"joint": 8 / 12, "class": 2 / 12, "spatial": 2 / 12})
    assert found["sources"]["categorical"] == pytest.approx({"joint": 0, "class": 10 / 12, "spatial": 2 / 12})
    assert measure(plain_prior(COUNTS), [LABELS], Policy(min_count=2))["falling_back"] == pytest.approx(5 / 12)
    with pytest.raises(SisError, match="the split is empty"):
        measure(plain_prior(COUNTS), [], Policy())


def test_the_pictures_show_every_prior_and_draws_that_differ() -> None:
    one = pictures(plain_prior(COUNTS), MASKS, decode, Policy())
    assert one.dtype == np.uint8 and one.shape[1] > 6 * 192 and len(one) > 3 * 128
    np.testing.assert_array_equal(one, pictures(plain_prior(COUNTS), MASKS, decode, Policy()))
    other = pictures(plain_prior(COUNTS), MASKS, decode, Policy(), seed=1)
    changed = np.flatnonzero((one != other).any((0, 2)))
    # Means stand left of draws: label map, spatial, categorical and joint are the first four columns.
    assert len(changed) and changed.min() > 152 + 4 * (192 + 6) - 1
    first = {"label map": (160, MASKS.palette[1].tolist()), "spatial": (358, [255] * 3), "class": (556, [129] * 3),
             "joint": (754, [13] * 3)}  # fmt: skip
    assert {name: one[130, x].tolist() for name, (x, _) in first.items()} == {k: v for k, (_, v) in first.items()}
    assert one[190, 754].tolist() == [129] * 3  # below, the joint prior falls back to the class


def test_a_report_is_three_files_that_agree(tmp_path: Path) -> None:
    facts = PriorFacts(dataset="scenes", pairs="p", labels="l", classes=4, size=[16, 24], autoencoder="ae-1",
                       params=params(), images="i", count=1509)  # fmt: skip
    paths = write_report(tmp_path / "report", plain_prior(COUNTS), facts, [LABELS], Policy(), MASKS, decode)
    assert [p.name for p in paths] == ["prior.json", "prior.md", "prior.png"]
    found = json.loads(paths[0].read_text())
    assert found["facts"]["autoencoder"] == "ae-1" and found["falling_back"] == pytest.approx(4 / 12)
    text = paths[1].read_text()
    assert "1,509 images, autoencoder ae-1, latents: mode" in text and "33.33% do not get their own" in text
    assert "| 1000 or more | 4.17% | 8.33% |" in text and "![The priors, decoded](prior.png)" in text
    assert decode_png(paths[2].read_bytes()).shape == pictures(plain_prior(COUNTS), MASKS, decode, Policy()).shape


def test_a_decoder_that_breaks_is_named() -> None:
    with pytest.raises(SisError, match="not finite: decoded prior"):
        pictures(plain_prior(COUNTS), MASKS, lambda x: x[:, :1].expand(-1, 3, -1, -1) * torch.nan, Policy())
