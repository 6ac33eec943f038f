# SPDX-License-Identifier: Apache-2.0
"""SDM's LPIPS: its loader's pixels, its double normalisation, and its own name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluators.discovery import find_metric
from evaluators.lpips_backbone import LpipsBackbone, seeded_network
from evaluators.lpips_sdm import SdmLpips
from evaluators.metric import Batch, Judge
from evaluators.metrics import lpips_sdm
from sis.config.files import label_space, named
from sis.config.judges import LpipsCard
from sis.config.protocols import ProtocolCard
from sis.errors import SisError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 72, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone() -> LpipsBackbone:
    return LpipsBackbone(seeded_network("alex"))


def test_images_are_squashed_twice_and_normalised_for_a_classifier(backbone: LpipsBackbone) -> None:
    x = SdmLpips(backbone.net).loaded(IMAGES)
    picture = Image.fromarray(IMAGES[1]).resize((256, 256), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture.resize((299, 299), Image.Resampling.BILINEAR), np.float32) / 255
    theirs = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert x.shape == (3, 3, 299, 299)
    np.testing.assert_allclose(x[1].permute(1, 2, 0).numpy(), theirs, rtol=0, atol=1e-6)


def test_the_module_is_lpips_on_what_the_loader_gives(backbone: LpipsBackbone) -> None:
    """So the package's number of the same tensors is the same, but for the place of eps."""
    judge = SdmLpips(backbone.net, sizes=(64, 75))
    x = judge.loaded(IMAGES)
    with torch.inference_mode():
        theirs = [backbone.net(x[i : i + 1], x[j : j + 1]).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(judge.pairwise(IMAGES), theirs, rtol=0, atol=1e-6)
    assert abs(judge.pairwise(IMAGES) - backbone.pairwise(IMAGES[:, :, :64])).min() > 1e-4


def test_the_metric_has_its_own_name_and_asks_for_alexnet(backbone: LpipsBackbone) -> None:
    card = named("protocols", "scenes-tiny", ProtocolCard)
    assert find_metric("lpips_sdm").module.name(card) == "lpips-sdm"
    judge = Judge(card, label_space("scenes"), backbone)
    rows = lpips_sdm.map(Batch(["a"] * 2, [0, 1], IMAGES[:2]), judge)
    np.testing.assert_allclose(rows.columns["pairs"][0], SdmLpips(backbone.net).pairwise(IMAGES[:2]), rtol=1e-6)
    wrong = card.model_copy(update={"lpips": LpipsCard(net="vgg")})
    with pytest.raises(SisError, match="on AlexNet, not on vgg"):
        lpips_sdm.settings(wrong)
