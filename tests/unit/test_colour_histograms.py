# SPDX-License-Identifier: Apache-2.0
"""Colour histograms: OpenCV's 8-bit colour spaces to the last bit, and correlations with known values."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluators.colour_histograms import DEFINITIONS, grey, hsv, similarity
from sis.data.lab8 import lab8_of_rgb as lab
from sis.errors import SisError


def pictures(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two pictures of a few colours each."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (12, 3))
    chosen = rng.integers(0, 12, (2, 40, 50)) % np.array([12, 5])[:, None, None]
    one, other = np.clip(palette[chosen] + rng.normal(0, 9, (2, 40, 50, 3)), 0, 255).astype(np.uint8)
    return one, other


def test_colour_spaces_are_opencvs_to_the_last_bit() -> None:
    """Every sixth level of each channel and all neutral greys; all 16.7 million colours were compared once."""
    cv2 = pytest.importorskip("cv2")
    levels = np.unique([*range(0, 256, 6), 1, 127, 128, 255]).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    colours = np.concatenate([colours, np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)], 1)
    for ours, code in ((hsv, cv2.COLOR_RGB2HSV), (lab, cv2.COLOR_RGB2Lab), (grey, cv2.COLOR_RGB2GRAY)):
        np.testing.assert_array_equal(ours(colours), cv2.cvtColor(colours, code), err_msg=ours.__name__)


def test_known_colours() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [255, 0, 255]], np.uint8)
    hues = [[0, 255, 255], [60, 255, 255], [120, 255, 255], [0, 0, 0], [0, 0, 255], [150, 255, 255]]
    assert hsv(colours).tolist() == hues
    assert lab(colours[3:5]).tolist() == [[0, 128, 128], [255, 128, 128]]
    assert lab(colours[:1]).tolist() == [[136, 208, 195]]
    assert grey(colours).tolist() == [76, 150, 29, 0, 255, 105]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_picture_is_like_itself_and_unlike_another(name: str) -> None:
    one, other = pictures()
    assert similarity(name, one, one) == pytest.approx(1)
    shuffled = np.random.default_rng(1).permutation(one.reshape(-1, 3)).reshape(one.shape)
    assert similarity(name, one, shuffled) == pytest.approx(1)
    assert similarity(name, one, other) == pytest.approx(similarity(name, other, one))
    assert similarity(name, one, other) < 0.95


def opencvs(name: str, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The definitions once more, with OpenCV's own histograms and comparison."""
    cv2 = pytest.importorskip("cv2")

    def compared(channels: list[int], bins: list[int], tops: list[int], convert: int | None = None) -> float:
        seen = [p if convert is None else cv2.cvtColor(p, convert) for p in (one, other)]
        ranges = [float(bound) for top in tops for bound in (0, top)]
        a, b = (cv2.calcHist([p], channels, None, bins, ranges) for p in seen)
        return cv2.compareHist(a, b, cv2.HISTCMP_CORREL)

    if name.startswith("rgb_joint"):
        bins = int(name.rsplit("_", 1)[1])
        return compared([0, 1, 2], [bins] * 3, [256] * 3)
    if name == "hs_50x60":
        return compared([0, 1], [50, 60], [180, 256], cv2.COLOR_RGB2HSV)
    tops, code = {
        "hue180": ([180], cv2.COLOR_RGB2HSV),
        "hsv_channel_mean": ([180, 256, 256], cv2.COLOR_RGB2HSV),
        "rgb_channel_mean_256": ([256] * 3, None),
        "lab_channel_mean_256": ([256] * 3, cv2.COLOR_RGB2Lab),
        "gray256": ([256], cv2.COLOR_RGB2GRAY),
    }[name]
    return float(np.mean([compared([i], [top], [top], code) for i, top in enumerate(tops)]))


@pytest.mark.parametrize("name", sorted(set(DEFINITIONS) - {"hsv72", "rgb_concat_256"}))
def test_the_correlation_is_opencvs(name: str) -> None:
    for seed in range(3):
        one, other = pictures(seed)
        assert similarity(name, one, other) == pytest.approx(opencvs(name, one, other), abs=1e-9, nan_ok=True)


def test_a_joint_histogram_of_many_colours_has_no_value() -> None:
    """What OpenCV's Python interface gives too: it takes the last axis for channels."""
    one, _ = pictures()
    noise = np.random.default_rng(0).integers(0, 256, one.shape, dtype=np.uint8)
    assert np.isnan(similarity("rgb_joint_16", one, noise))


def test_constant_histograms_are_alike_and_cells_are_joined_as_in_the_entrants_script() -> None:
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert similarity("gray256", every_level, every_level[::-1]) == 1.0
    red, magenta, white = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (255, 0, 20), (255,) * 3))
    assert similarity("hsv72", red, magenta) == 1.0
    assert similarity("hsv72", red, white) < 0


def test_an_unknown_definition_is_answered_with_the_nearest() -> None:
    with pytest.raises(SisError, match=r"unknown colour histogram 'hue18'.*did you mean 'hue180'"):
        similarity("hue18", *pictures())
