# SPDX-License-Identifier: Apache-2.0
"""NIMA: chances of ten ratings from either network, fed as its card says, filled by names or by the stand-in's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluators.features import nima
from evaluators.features.nima import Nima
from evaluators.iidm_score import aesthetic_percent
from evaluators.nets.nima import MobileNima, VggNima
from evaluators.network import Source
from sis.errors import SisError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mobile() -> Nima:
    return nima.load({"base": "mobilenet"}, Source())


def test_the_networks_are_the_papers() -> None:
    """VGG-16's thirteen convolutions and MobileNet's 27, with ten outputs in place of a thousand."""
    with torch.device("meta"):
        vgg, small = VggNima(), MobileNima()
    assert sum(p.numel() for p in vgg.parameters()) == 14_714_688 + 25_088 * 10 + 10
    assert sum(p.numel() for p in small.parameters()) == 3_206_976 + 1024 * 10 + 10
    names = list(vgg.state_dict())
    assert names[:2] == ["features.0.weight", "features.0.bias"]
    assert names[-3:] == ["features.28.bias", "classifier.1.weight", "classifier.1.bias"]


def test_answers_are_chances_of_ten_ratings_whatever_the_batch(mobile: Nima) -> None:
    found = mobile.features(IMAGES)
    assert found.shape == (9, mobile.dims) == (9, 10) and found.dtype == np.float32
    assert (found >= 0).all() and (aesthetic_percent(found) > 10).all()
    alone = np.concatenate([mobile.features(IMAGES[i : i + 1]) for i in (8, 0)])
    np.testing.assert_allclose(alone, found[[8, 0]], rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_pictures_are_squashed_or_cropped_to_what_the_network_sees() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (256, 512, 3)).copy()
    squashed = nima.load({"base": "mobilenet"}, Source()).pixels(ramp[None])
    cropped = nima.load({"base": "mobilenet", "feed": "crop"}, Source()).pixels(ramp[None])
    assert squashed.shape == cropped.shape == (1, 3, 224, 224)
    np.testing.assert_allclose([squashed[0, 0, 5, 0], squashed[0, 0, 5, -1]], [-1, 1], atol=0.02)
    # The middle 224 of 512 columns.
    np.testing.assert_allclose(
        [cropped[0, 0, 5, 0], cropped[0, 0, 5, -1]], [2 * 144 / 511 - 1, 2 * 367 / 511 - 1], atol=0.01
    )


def test_weights_come_in_by_name(tmp_path: Path, mobile: Nima) -> None:
    torch.manual_seed(0)
    theirs = MobileNima().eval()
    save_file({f"module.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "nima.safetensors")
    ours = nima.load({"base": "mobilenet"}, Source([tmp_path / "nima.safetensors"]))
    with torch.inference_mode():
        expected = theirs(ours.pixels(IMAGES)).numpy()
    np.testing.assert_allclose(ours.features(IMAGES), expected, rtol=0, atol=1e-5)
    assert np.abs(ours.features(IMAGES[:1]) - mobile.features(IMAGES[:1])).max() > 1e-3
    with pytest.raises(SisError, match="does not fit the network"):
        nima.load({}, Source([tmp_path / "nima.safetensors"]))


def test_strided_convolutions_are_padded_at_the_end_as_in_keras() -> None:
    """So the first answer looks at pixels 0..2, not at a border."""
    network = MobileNima().eval()
    for parameter in network.conv1.parameters():
        torch.nn.init.ones_(parameter)
    seen: list[Any] = []
    network.conv1.register_forward_hook(lambda _, given, out: seen.append(out))
    with torch.inference_mode():
        network(torch.ones(1, 3, 32, 32))
    assert seen[0].shape == (1, 32, 16, 16)
    assert (seen[0][0, 0, 0, 0].item(), seen[0][0, 0, -1, -1].item()) == (27, 12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bas": "vgg16"}, r"no option 'bas'.*did you mean 'base'"),
        ({"base": "vgg"}, r"base is 'vgg'.*did you mean 'vgg16'"),
        ({"feed": "centre"}, r"feed is 'centre'.*known: crop, squash"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, str], reason: str) -> None:
    with pytest.raises(SisError, match=reason):
        nima.load(options, Source())
    with pytest.raises(SisError, match="one file of weights, found 2"):
        nima.load({}, Source([Path("a"), Path("b")]))
