# SPDX-License-Identifier: Apache-2.0
"""The Cityscapes judge: options, importer, scales, sizes, and the resizing that it shares with other judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from evaluators.nets.drn import ARCHITECTURES, UNUSED, DrnSegmenter
from evaluators.network import Source
from evaluators.resampling import next_multiple, opencv_bilinear, pillow_bilinear, pillow_planes
from evaluators.segmenters.drn import Drn, load
from sis.errors import SisError

SMALL: dict[str, Any] = {"arch": "drn_d_22", "classes": 6}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 30, 45, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def judge() -> Drn:
    return load(SMALL, Source())


def with_scales(judge: Drn, scales: list[float] | None) -> Drn:
    return Drn(judge.network, judge.options.model_copy(update={"scales": scales}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": [1.0]}, "'scale'; did you mean 'scales'"),
        ({"arch": "drn_d_23"}, "arch"),
        ({"classes": 0}, "classes"),
        ({"classes": 257}, "classes"),
        ({"scales": []}, "scales"),
        ({"scales": [1.0, 0.0]}, "scales.1"),
        ({"scales": [float("nan")]}, "scales.0"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"std": [0.1, 0.1, 0]}, "std.2"),
        ({"use_torch_up": 1}, "use_torch_up"),
    ],
)
def test_senseless_options_are_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(SisError) as refusal:
        load(options, Source())
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("scales", [None, [1.0, 0.5, 1.75]])
def test_answers_depend_neither_on_the_batch_nor_on_its_order(judge: Drn, images: np.ndarray, scales: list) -> None:
    judge = with_scales(judge, scales)
    together = judge.predict(images)
    assert together.shape == (3, 30, 45) and together.dtype == np.uint8 and len(np.unique(together)) > 1
    np.testing.assert_array_equal(judge.predict(images[::-1]), together[::-1])
    np.testing.assert_array_equal(judge.predict(images[1:2]), together[1:2])
    assert judge.predict(images[:0]).shape == (0, 30, 45)


def test_another_size_resizes_log_probabilities_not_answers(judge: Drn, images: np.ndarray) -> None:
    single = judge.predict(images[:1], (61, 80))[0]
    raw = judge.raw(images[0])
    assert raw.shape == (6, 32, 48)  # rounded up to multiples of 8
    np.testing.assert_array_equal(single, pillow_planes(raw, (61, 80)).argmax(0))
    several = with_scales(judge, [1.0, 0.5])
    total = sum(pillow_planes(several.raw(images[0], scale), (30, 45)) for scale in (1.0, 0.5))
    np.testing.assert_array_equal(several.predict(images[:1], (61, 80))[0], pillow_planes(total, (61, 80)).argmax(0))


def test_scales_add_up(judge: Drn, images: np.ndarray) -> None:
    once = judge.log_probabilities(images[0])
    np.testing.assert_array_equal(with_scales(judge, [1.0]).log_probabilities(images[0]), once)
    np.testing.assert_array_equal(with_scales(judge, [1.0, 1.0]).log_probabilities(images[0]), 2 * once)
    assert np.abs(with_scales(judge, [1.0, 0.75]).log_probabilities(images[0]) - 2 * once).max() > 0.01


def test_an_image_that_vanishes_is_refused(judge: Drn, images: np.ndarray) -> None:
    with pytest.raises(SisError, match=r"30x45 vanishes at scale 0\.01"):
        with_scales(judge, [1.0, 0.01]).predict(images)


def test_probabilities_sum_to_one_at_every_pixel(judge: Drn) -> None:
    image = np.random.default_rng(1).integers(0, 256, (150, 17, 3), dtype=np.uint8)  # more rows than one band
    np.testing.assert_allclose(np.exp(judge.raw(image)).sum(0), 1, atol=1e-5)


def test_a_checkpoint_gives_the_judge_its_weights(judge: Drn, tmp_path: Path) -> None:
    state = {f"module.{name}": value + 1 for name, value in judge.network.state_dict().items()}
    save_file(state, tmp_path / "drn.safetensors")
    loaded = load(SMALL, Source([tmp_path / "drn.safetensors"])).network.state_dict()
    assert all(torch.equal(loaded[name], value + 1) for name, value in judge.network.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(judge: Drn, tmp_path: Path) -> None:
    path, state = tmp_path / "drn.safetensors", dict(judge.network.state_dict())
    state["base.8.0.strange"] = state.pop("base.8.0.weight")
    state["seg.bias"] = torch.zeros(19)
    save_file(state, path)
    with pytest.raises(
        SisError, match=r"1 missing: base\.8\.0\.weight; 1 unexpected: base\.8\.0\.strange; .*seg\.bias"
    ):
        load(SMALL, Source([path]))
    with pytest.raises(SisError, match="takes one file of weights, found 2"):
        load(SMALL, Source([path, path]))


def test_a_projection_that_no_skip_uses_is_dropped(tmp_path: Path) -> None:
    small = {"arch": "drn_c_26", "classes": 2}
    state = load(small, Source()).network.state_dict()
    save_file({**state, **{name: torch.ones(1) for name in UNUSED}}, tmp_path / "drn.safetensors")
    assert load(small, Source([tmp_path / "drn.safetensors"])).network.state_dict().keys() == state.keys()


def test_the_stand_in_is_the_same_every_time_and_keeps_the_bilinear_kernel(judge: Drn) -> None:
    again = load(SMALL, Source()).network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in judge.network.state_dict().items())
    # A stride of 8 leaves each pixel two taps a side that sum to one.
    taps = again["up.weight"][5, 0].sum(0)
    torch.testing.assert_close(taps[:8] + taps[8:], torch.full((8,), 8.0))


def test_upsampling_is_bilinear_but_for_the_outer_four_pixels(judge: Drn) -> None:
    scores = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    plain = F.interpolate(scores, scale_factor=8.0, mode="bilinear", align_corners=False)
    with torch.inference_mode():
        ours = judge.network.up(scores)
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], plain[..., 4:-4, 4:-4])
    assert (ours - plain)[..., 0, :].abs().max() > 0.1


def test_the_torch_upsampling_has_no_weights_and_aligns_corners(images: np.ndarray) -> None:
    judge = load({**SMALL, "use_torch_up": True}, Source())
    assert not [name for name in judge.network.state_dict() if name.startswith("up")]
    with torch.inference_mode():
        scores = judge.network.logits(judge.normalised(images[0]))
    corners = F.log_softmax(scores, 1)[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    ours = torch.from_numpy(judge.raw(images[0])[None])[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(ours, corners)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_stride_8_and_the_size_of_its_name(arch: str) -> None:
    with torch.device("meta"):
        network = DrnSegmenter(arch, 19).eval()
        assert network.logits(torch.empty(1, 3, 33, 48)).shape == (1, 19, 5, 6)
    skips = ("downsample", "up.")
    layers = [n for n, w in network.named_parameters() if w.ndim == 4 and not any(s in n for s in skips)]
    assert len(layers) == int(arch.split("_")[-1])
    if arch == "drn_d_105":
        assert round(sum(w.numel() for w in network.parameters()) / 1e6, 1) == 54.3


@pytest.mark.parametrize("level", [7, 8])
def test_the_last_levels_of_family_c_have_no_skip(level: int) -> None:
    network = DrnSegmenter("drn_c_26", 2).eval()
    block = network.base[level + 2]
    assert isinstance(block, torch.nn.Sequential)
    with torch.no_grad():
        for weight in block.parameters():
            weight.zero_()
        assert not block(torch.ones(1, 512, 3, 3)).any()
        assert network.base[3](torch.ones(1, 16, 3, 3)).any()


@given(length=st.integers(1, 2000), of=st.integers(1, 64))
def test_next_multiple(length: int, of: int) -> None:
    found = next_multiple(length, of)
    assert found % of == 0 and 0 <= found - length < of


def test_planes_are_averaged_when_they_shrink_and_keep_their_bits_otherwise() -> None:
    planes = np.zeros((2, 8, 8), np.float32)
    planes[0, ::2] = -1000.5  # every second row: points would be sampled, or averages taken
    small = pillow_planes(planes, (2, 8))
    assert small.dtype == np.float32 and not small[1].any()
    assert ((small[0] < -400) & (small[0] > -600)).all()
    assert pillow_planes(planes, (8, 8)) is planes
    np.testing.assert_allclose(pillow_planes(planes + 0.25, (16, 24))[1], 0.25)


def test_opencv_does_not_average_and_halves_exactly() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[::4] = 200
    assert set(np.unique(opencv_bilinear(image, (2, 8)))) == {0}  # between rows 1 and 2, and 5 and 6
    assert pillow_bilinear(image, (2, 8)).min() > 20
    assert set(np.unique(opencv_bilinear(image, (4, 4)))) == {0, 100}
    assert opencv_bilinear(image, (8, 8)) is image


@pytest.mark.parametrize(
    ("before", "after"), [((37, 53), (64, 96)), ((53, 37), (32, 32)), ((64, 96), (32, 48)), ((20, 30), (40, 15))]
)
def test_opencv_bilinear_is_opencvs_to_the_last_bit(before: tuple[int, int], after: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(2).integers(0, 256, (*before, 3), dtype=np.uint8)
    np.testing.assert_array_equal(opencv_bilinear(image, after), cv2.resize(image, after[::-1]))
