# SPDX-License-Identifier: Apache-2.0
"""The face U-Net: sizes, the resizing before it and after it, the files it takes, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluators.nets.face_unet import FaceUNet
from evaluators.network import Source
from evaluators.segmenters.face_unet import FaceSegmenter, load
from sis.data.resize import nearest
from sis.data.weight_files import write_weights
from sis.errors import SisError

SMALL: dict[str, Any] = {"feature_scale": 16, "classes": 6, "size": 64}


@pytest.fixture(scope="module")
def judge() -> FaceSegmenter:
    return load(SMALL, Source())


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_a_file_of_its_weights_brings_the_same_answers(
    judge: FaceSegmenter, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    expected = judge.predict(images)
    assert len(np.unique(expected)) > 1, "the stand-in tells classes apart"
    weights = judge.network.state_dict()
    write_weights(weights, tmp_path / "model.pth")
    np.testing.assert_array_equal(load(SMALL, Source([tmp_path / "model.pth"])).predict(images), expected)
    weights["final.bias"] = weights["final.bias"] + torch.tensor([0, 0, 0, 1e6, 0, 0])
    write_weights(weights, tmp_path / "other.pth")
    assert (load(SMALL, Source([tmp_path / "other.pth"])).predict(images) == 3).all()
    with pytest.raises(SisError, match=r"final\.weight is \(6, 4, 1, 1\) and should be \(19, 4, 1, 1\)"):
        load({**SMALL, "classes": 19}, Source([tmp_path / "model.pth"]))


@pytest.mark.parametrize("size", [100, [64, 72], [48, 40]])
def test_sizes_that_four_halvings_do_not_divide_are_refused_in_one_line(size: int | list[int]) -> None:
    with pytest.raises(SisError, match="needs sides divisible by 16, found") as caught:
        load({**SMALL, "size": size}, Source())
    assert "\n" not in str(caught.value)
    h, w = size if isinstance(size, list) else (size, size)
    with pytest.raises(SisError, match=f"found {h}x{w}"):
        FaceUNet(16, 6)(torch.zeros(1, 3, h, w))


def test_pictures_are_resized_by_picking_pixels_as_the_authors_tester_does(judge: FaceSegmenter) -> None:
    image = np.zeros((1, 96, 80, 3), np.uint8)
    image[:, :, ::2] = 255  # stripes of one pixel: averaging would grey them
    picked = judge.prepare(image)
    assert picked.shape == (1, 3, 64, 64) and set(picked.unique().tolist()) == {-1.0, 1.0}
    averaged = load({**SMALL, "resize": "bilinear"}, Source()).prepare(image)
    assert set(averaged.unique().tolist()) > {-1.0, 1.0} or len(averaged.unique()) > 2


def test_a_picture_of_the_size_is_fed_as_it_is(judge: FaceSegmenter, images: NDArray[np.uint8]) -> None:
    expected = (images.astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(judge.prepare(images).numpy(), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_classes_are_decided_at_the_network_s_size_and_then_sampled(
    judge: FaceSegmenter, images: NDArray[np.uint8]
) -> None:
    with torch.inference_mode():
        classes = judge.network(judge.prepare(images)).argmax(1).numpy().astype(np.uint8)
    np.testing.assert_array_equal(judge.predict(images), classes)
    for size in ((32, 48), (128, 128), (51, 33)):
        expected = np.stack([nearest(plane, size) for plane in classes])
        np.testing.assert_array_equal(judge.predict(images, size), expected)


def test_answers_do_not_depend_on_the_batch(judge: FaceSegmenter, images: NDArray[np.uint8]) -> None:
    together = judge.predict(images[:, :40, :50], (40, 50))
    for image, answer in zip(images, together, strict=True):
        np.testing.assert_array_equal(judge.predict(image[None, :40, :50])[0], answer)


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        network = FaceUNet()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 1.94
    assert len(network.state_dict()) == 136


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resise": "nearest"}, "unknown key 'resise'; did you mean 'resize'"),
        ({"resize": "bicubic"}, "resize: should be 'nearest' or 'bilinear'"),
        ({"feature_scale": 5}, "feature_scale 5 does not divide 64 channels"),
        ({"size": [64, 64, 3]}, "size"),
    ],
)
def test_senseless_options_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message) as caught:
        load({**SMALL, **wrong}, Source())
    assert "\n" not in str(caught.value)
