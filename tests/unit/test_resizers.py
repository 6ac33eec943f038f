# SPDX-License-Identifier: Apache-2.0
"""The resizers of FID's implementations against hand-made numbers and the libraries that they stand on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluators.resizers import BEFORE, RESIZERS, resize, squash

WAYS = [(way, before) for way in RESIZERS for before in (None, *BEFORE)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(("way", "before"), WAYS)
def test_flat_colours_stay_and_images_do_not_see_each_other(way: str, before: str | None) -> None:
    flat = np.broadcast_to(np.array([0, 100, 255], np.uint8), (1, 40, 23, 3))  # not writable
    found = resize(flat, way, 31, before=before)
    assert found.shape == (1, 3, 31, 31) and found.dtype == torch.float32
    np.testing.assert_allclose(found[0].permute(1, 2, 0), np.broadcast_to([0, 100, 255], (31, 31, 3)), atol=1e-3)
    images = noise(3, 20, 50, 3)
    together = resize(images, way, 31, before=before)
    alone = torch.cat([resize(images[i : i + 1], way, 31, before=before) for i in (2, 0, 1)])
    assert torch.equal(together[[2, 0, 1]], alone)


@pytest.mark.parametrize("way", RESIZERS)
def test_an_image_of_the_right_size_is_left_alone(way: str) -> None:
    images = noise(1, 31, 31, 3)
    np.testing.assert_allclose(resize(images, way, 31)[0].permute(1, 2, 0), images[0], atol=1e-4)


def test_ways_differ_where_they_say_so() -> None:
    ramp = np.repeat(np.array([[0, 100]], np.uint8), 2, 0)[None, ..., None].repeat(3, -1)
    np.testing.assert_allclose(resize(ramp, "tf1", 4)[0, 0, 0], [0, 50, 100, 100])
    np.testing.assert_allclose(resize(ramp, "pytorch-fid", 4)[0, 0, 0], [0, 25, 75, 100])
    spreads = {way: float(resize(noise(1, 64, 64, 3), way, 8).std()) for way in RESIZERS}
    assert (
        spreads["clean"] < 20 < 30 < spreads["pytorch-fid"] < 60 < spreads["tf1"]
    )  # only clean smooths when it shrinks


def test_clean_is_pillows_filter_on_floats_without_rounding() -> None:
    image = noise(1, 50, 34, 3)
    found = resize(image, "clean", 20)[0]
    for c in range(3):
        plane = Image.fromarray(image[0, ..., c].astype(np.float32)).resize((20, 20), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found[c], np.clip(np.asarray(plane), 0, 255))
    assert (found != found.round()).any()
    edge = np.zeros((1, 8, 8, 3), np.uint8)
    edge[:, :, 4:] = 255
    found = resize(edge, "clean", 64)
    assert (float(found.min()), float(found.max())) == (0, 255)  # overshoot is clipped


def test_sdm_squashes_every_shape_and_smooths_only_when_shrinking() -> None:
    wide = noise(1, 40, 600, 3)
    found = squash(wide)
    assert found.shape == (1, 256, 256, 3) and found.dtype == np.float32
    assert found.std() < 0.7 * wide.std()
    np.testing.assert_allclose(squash(noise(1, 256, 256, 3))[0], noise(1, 256, 256, 3)[0], atol=1e-3)
