# SPDX-License-Identifier: Apache-2.0
"""Colour transfer: OpenCV's 8-bit CIELAB to the last bit in both directions, and what the two transfers promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from sis.data.lab8 import lab8_of_rgb, rgb_of_lab8
from sis.diffusion.colour_transfer import (
    TRANSFERS,
    lab8_statistics,
    lab_of_rgb,
    reinhard_lab,
    reinhard_lab8,
    rgb_of_lab,
    transferred,
)
from sis.errors import SisError

Picture = NDArray[np.uint8]


def picture(seed: int, deviation: float = 25, size: tuple[int, int] = (20, 28)) -> Picture:
    """Noise around a gradient between two colours, away from the ends of the range."""
    rng = np.random.default_rng(seed)
    ends, t = rng.uniform(70, 190, (2, 3)), np.linspace(0, 1, size[1])[None, :, None]
    values = ends[0] * (1 - t) + ends[1] * t + rng.normal(0, deviation, (*size, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def every(step: int) -> Picture:
    """Triples of levels: every so many of each channel, the last ones and all neutral ones."""
    levels = np.unique([*range(0, 256, step), 1, 127, 128, 254, 255]).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    return np.concatenate([grid, np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)], 1)


def test_both_directions_are_opencvs_to_the_last_bit() -> None:
    """Every fifth level and a random million; all 16.7 million triples were compared once in each direction."""
    cv2 = pytest.importorskip("cv2")
    for triples in (every(5), np.random.default_rng(0).integers(0, 256, (1, 10**6, 3), dtype=np.uint8)):
        np.testing.assert_array_equal(lab8_of_rgb(triples), cv2.cvtColor(triples, cv2.COLOR_RGB2Lab))
        np.testing.assert_array_equal(rgb_of_lab8(triples), cv2.cvtColor(triples, cv2.COLOR_Lab2RGB))


def test_known_colours() -> None:
    """Values of OpenCV 5.0.0, so that the tables are tested where it is not installed."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [12, 200, 90]], np.uint8)
    lab = np.array([[136, 208, 195], [224, 42, 211], [82, 207, 20], [0, 128, 128], [255, 128, 128]], np.uint8)
    np.testing.assert_array_equal(lab8_of_rgb(colours[:5]), lab)
    np.testing.assert_array_equal(rgb_of_lab8(lab[3:]), colours[3:5])
    assert rgb_of_lab8(np.array([[255, 0, 129], [254, 1, 158]], np.uint8)).tolist() == [[0, 255, 249], [0, 255, 191]]


def test_there_and_back_most_colours_stay_near_and_greys_within_one() -> None:
    colours = every(17)
    difference = abs(rgb_of_lab8(lab8_of_rgb(colours)).astype(int) - colours)
    assert difference.mean() < 1 and np.quantile(difference, 0.99) <= 8  # dark saturated colours move furthest
    greys = colours[0, (np.ptp(colours[0], axis=1) == 0)]
    assert len(greys) >= 256 and abs(rgb_of_lab8(lab8_of_rgb(greys)).astype(int) - greys).max() <= 1


def test_the_float_space_is_cielab() -> None:
    colours = every(15)
    # The library's white point and matrix have other last digits, which differ by a tenth of a unit.
    np.testing.assert_allclose(lab_of_rgb(colours), rgb2lab(colours), atol=0.15)
    np.testing.assert_array_equal(rgb_of_lab(lab_of_rgb(colours)), colours)
    outside = np.array([[60.0, 120.0, -90.0], [101.0, 0.0, 0.0]])
    ours = rgb_of_lab(outside)
    assert abs(ours.astype(float) - 255 * np.clip(lab2rgb(outside), 0, 1)).max() <= 2 and ours.max() == 255


def opencvs(source: Picture, reference: Picture) -> Picture:
    """The released transfer once more: OpenCV's conversions and statistics, one channel after the other."""
    cv2 = pytest.importorskip("cv2")
    ours, theirs = (cv2.cvtColor(p, cv2.COLOR_RGB2LAB) for p in (source, reference))
    (mean, deviation), (wanted, spread) = (np.around(cv2.meanStdDev(p), 2)[..., 0] for p in (ours, theirs))
    out = np.empty_like(ours)
    for i in range(3):
        factor = np.float32(spread[i] / deviation[i])
        channel = (ours[..., i].astype(np.float32) - np.float32(mean[i])) * factor + np.float32(wanted[i])
        out[..., i] = np.round(channel).clip(0, 255)
    return cv2.cvtColor(out, cv2.COLOR_LAB2RGB)


@pytest.mark.parametrize("seed", range(8))
def test_the_released_transfer_is_reproduced_exactly(seed: int) -> None:
    source, reference = picture(seed, 4 + 8 * seed), picture(100 + seed, 60 - 7 * seed, (31, 17))
    np.testing.assert_array_equal(reinhard_lab8(source, reference), opencvs(source, reference))


def test_both_transfers_agree_on_ordinary_pictures() -> None:
    for seed in range(4):
        source, reference = picture(seed), picture(50 + seed)
        difference = abs(reinhard_lab8(source, reference).astype(int) - reinhard_lab(source, reference))
        assert 0 < difference.mean() < 1.5 and np.quantile(difference, 0.99) <= 6


def test_the_unrounded_transfer_gives_the_references_statistics() -> None:
    source, reference = picture(1, 12), picture(2, 9)
    found, wanted = lab_of_rgb(reinhard_lab(source, reference)), lab_of_rgb(reference)
    np.testing.assert_allclose(found.mean((0, 1)), wanted.mean((0, 1)), atol=0.2)
    np.testing.assert_allclose(found.std((0, 1)), wanted.std((0, 1)), atol=0.2)


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_picture_in_its_own_colours_is_itself(name: str) -> None:
    source = picture(3)
    assert abs(TRANSFERS[name](source, source).astype(int) - source).max() <= (6 if name == "reinhard_lab8" else 0)


@pytest.mark.parametrize("name", TRANSFERS)
def test_a_constant_channel_is_shifted_and_not_divided_by_nothing(name: str) -> None:
    flat, reference = np.full((8, 9, 3), (90, 140, 60), np.uint8), picture(4)
    out = TRANSFERS[name](flat, reference)
    assert (out == out[0, 0]).all()
    np.testing.assert_allclose(lab_of_rgb(out[0, 0]), lab_of_rgb(reference).mean((0, 1)), atol=1.5)
    grey = reference[..., :1].repeat(3, 2)  # constant in two channels of three
    assert abs(lab_of_rgb(TRANSFERS[name](grey, reference))[..., 0].std() - lab_of_rgb(reference)[..., 0].std()) < 1
    constant = TRANSFERS[name](reference, flat)
    assert constant.shape == reference.shape and abs(constant.astype(int) - flat[0, 0]).max() <= 2


def test_statistics_are_of_the_population() -> None:
    lab = lab8_of_rgb(picture(5))
    mean, deviation = lab8_statistics(lab)
    np.testing.assert_allclose(mean, lab.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(deviation, lab.std((0, 1)), rtol=1e-9)


def test_a_batch_is_transferred_picture_by_picture() -> None:
    sources, references = [picture(6), picture(7)], [picture(8), picture(9)]
    images, wanted = (torch.from_numpy(np.stack(p)).permute(0, 3, 1, 2) for p in (sources, references))
    out = transferred("reinhard_lab8", images, wanted)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    for i in range(2):
        expected = reinhard_lab8(sources[i], references[i])
        np.testing.assert_array_equal(out[i].permute(1, 2, 0).numpy(), expected)
    with pytest.raises(SisError, match=r"no colour transfer 'reinhard'.*did you mean 'reinhard_lab'"):
        transferred("reinhard", images, wanted)
