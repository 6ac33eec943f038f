# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2 with MSC: sampling of the copies, the files it takes, sizes, batches and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from evaluators.nets.deeplabv2 import MSC, DeepLabV2, Stem, SummedASPP, maximum_over_scales
from evaluators.network import Source
from evaluators.segmenters.deeplabv2 import DeepLabV2Segmenter, load
from sis.data.weight_files import write_weights
from sis.errors import SisError

SMALL: dict[str, Any] = {"blocks": [1, 1, 1, 1], "classes": 5, "rates": [1, 3], "scales": [0.5]}


@pytest.fixture(scope="module")
def judge() -> DeepLabV2Segmenter:
    return load(SMALL, Source())


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :37, :50]


def test_a_file_of_its_weights_brings_the_same_answers(
    judge: DeepLabV2Segmenter, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    expected = judge.predict(images)
    assert len(np.unique(expected)) > 1, "the stand-in tells classes apart"
    weights = judge.network.state_dict()
    old = {f"module.{k}": v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    write_weights(old, tmp_path / "old.pth")
    np.testing.assert_array_equal(load(SMALL, Source([tmp_path / "old.pth"])).predict(images), expected)
    weights["base.aspp.c0.bias"] = weights["base.aspp.c0.bias"] + torch.tensor([1e6, 0, 0, 0, 0])
    write_weights(weights, tmp_path / "other.pth")
    assert not load(SMALL, Source([tmp_path / "other.pth"])).predict(images).any()


def test_another_network_s_file_is_refused(judge: DeepLabV2Segmenter, tmp_path: Path) -> None:
    write_weights(judge.network.state_dict(), tmp_path / "five.pth")
    with pytest.raises(SisError, match=r"base\.aspp\.c0\.weight is \(5, 2048, 3, 3\) and should be \(6, 2048, 3, 3\)"):
        load({**SMALL, "classes": 6}, Source([tmp_path / "five.pth"]))
    with pytest.raises(SisError, match="one file of weights, found 2"):
        load(SMALL, Source([tmp_path / "five.pth"] * 2))


@pytest.mark.parametrize(("size", "equal"), [((64, 48), True), ((65, 81), False)])
def test_old_and_new_sampling_differ_where_a_scaled_side_is_no_whole_number(size: tuple[int, int], equal: bool) -> None:
    x = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    old, new = (maximum_over_scales(lambda y: y, x, [0.75], how) for how in ("old", "new"))
    assert torch.equal(old, new) is equal
    whole = (int(0.75 * size[0]), int(0.75 * size[1]))
    copy = F.interpolate(x, whole, mode="bilinear", align_corners=False)
    expected = torch.maximum(x, F.interpolate(copy, size, mode="bilinear", align_corners=False))
    torch.testing.assert_close(old, expected, rtol=0, atol=0)


def test_a_class_wins_where_any_scale_sees_it() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3, 3] = 1.0
    found = maximum_over_scales(lambda y: -y, x, [0.5], "old")
    assert found.max() == 0 and found[..., 3, 3] > -1 and (found >= -x).all()


def test_the_stem_keeps_a_last_odd_row_and_the_pyramid_adds() -> None:
    with torch.inference_mode():
        assert Stem().eval()(torch.zeros(1, 3, 32, 64)).shape == (1, 64, 9, 17)
        pyramid = SummedASPP(4, 3, [1, 2]).eval()
        x = torch.rand(1, 4, 9, 9)
        first, second = pyramid.children()
        torch.testing.assert_close(pyramid(x), first(x) + second(x))
        assert [c.dilation for c in (first, second)] == [(1, 1), (2, 2)]


def test_the_published_network_has_the_published_size() -> None:
    with torch.device("meta"):
        network = MSC(DeepLabV2([3, 4, 23, 3], 182, [6, 12, 18, 24]), [0.5, 0.75], "old")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 55.9
    assert len(network.state_dict()) == 632


def test_a_picture_is_fed_blue_first_and_less_the_mean(judge: DeepLabV2Segmenter) -> None:
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 200
    expected = np.array([0 - 104.008, 0 - 116.669, 200 - 122.675], np.float32)
    np.testing.assert_array_equal(judge.prepare(red)[0, :, 1, 1].numpy(), expected)


def test_answers_do_not_depend_on_the_batch_and_come_at_the_size_asked_for(
    judge: DeepLabV2Segmenter, images: NDArray[np.uint8]
) -> None:
    together = judge.predict(images, (40, 21))
    assert together.shape == (3, 40, 21) and together.dtype == np.uint8
    for image, answer in zip(images, together, strict=True):
        np.testing.assert_array_equal(judge.predict(image[None], (40, 21))[0], answer)
    with torch.inference_mode():
        logits = judge.network(judge.prepare(images))
    planes = F.interpolate(logits, (40, 21), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(together, planes.argmax(1).numpy())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interpolaton": "old"}, r"unknown key 'interpolaton'; did you mean 'interpolation'\?"),
        ({"interpolation": "older"}, "interpolation: should be 'old' or 'new'"),
        ({"blocks": [3, 4, 23]}, "blocks"),
        ({"classes": 300}, "classes"),
        ({"scales": [0.5, 0.0]}, r"scales\.1"),
    ],
)
def test_senseless_options_are_refused_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message) as caught:
        load({**SMALL, **wrong}, Source())
    assert "\n" not in str(caught.value)
