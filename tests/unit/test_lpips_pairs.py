# SPDX-License-Identifier: Apache-2.0
"""LPIPS of all pairs against the package's own loop over pairs: every net, odd sizes, small and large groups."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluators import lpips_backbone
from evaluators.lpips_backbone import LpipsBackbone, batches_of, seeded_network


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def backbone_of(net: str) -> LpipsBackbone:
    return LpipsBackbone(seeded_network(net))


@pytest.fixture
def alex() -> LpipsBackbone:
    return backbone_of("alex")


def pictures(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Noisy variants of one picture, so that pairs differ by unequal amounts."""
    rng = np.random.default_rng(count)
    base = rng.integers(0, 256, (1, height, width, 3))
    noise = rng.normal(0, 1, (count, height, width, 3)) * np.linspace(5, 90, count).reshape(-1, 1, 1, 1)
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def by_the_package(backbone: LpipsBackbone, images: NDArray[np.uint8]) -> list[float]:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        return [backbone.net(x[i : i + 1], x[j : j + 1]).item() for i, j in combinations(range(len(x)), 2)]


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
@pytest.mark.parametrize(("count", "height", "width"), [(2, 64, 64), (3, 61, 47)])
def test_every_net_equals_the_package(net: str, count: int, height: int, width: int) -> None:
    backbone, images = backbone_of(net), pictures(count, height, width)
    theirs = by_the_package(backbone, images)
    np.testing.assert_allclose(backbone.pairwise(images), theirs, rtol=0, atol=1e-7)
    assert min(theirs) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("net", "side"), [("alex", 64), ("vgg", 32), ("squeeze", 64)])
def test_twenty_images_equal_the_package_at_fifteen_times_its_speed(net: str, side: int) -> None:
    backbone, images = backbone_of(net), pictures(20, side, side)
    backbone.pairwise(images[:2])
    start = time.process_time()
    theirs = by_the_package(backbone, images)
    middle = time.process_time()
    ours = backbone.pairwise(images)
    ratio = (middle - start) / (time.process_time() - middle)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
    assert ratio > 10  # measured 15 to 92 at 64 to 128 pixels; a busy machine disturbs the clock


def test_blocks_and_batches_change_nothing(alex: LpipsBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(7, 64, 80)
    whole = alex.pairwise(images)
    monkeypatch.setattr(lpips_backbone, "_BLOCK", 999)
    np.testing.assert_allclose(alex.pairwise(images), whole, rtol=0, atol=1e-8)
    monkeypatch.setattr(lpips_backbone, "_BATCH_PIXELS", 2 * 64 * 80)
    assert batches_of(7, 64, 80) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    np.testing.assert_allclose(alex.pairwise(images), whole, rtol=0, atol=1e-7)


def test_a_large_image_is_a_batch_of_its_own() -> None:
    assert batches_of(3, 2048, 4096) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert batches_of(20, 128, 128) == [slice(0, 20)]


def test_order_changes_the_order_alone_and_equal_images_are_equal(alex: LpipsBackbone) -> None:
    images = pictures(4, 64, 64)
    matrix = np.zeros((4, 4))
    matrix[np.triu_indices(4, 1)] = alex.pairwise(images)
    matrix += matrix.T
    order = [2, 0, 3, 1]
    moved = alex.pairwise(images[order])
    np.testing.assert_allclose(moved, matrix[np.ix_(order, order)][np.triu_indices(4, 1)], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(alex.pairwise(images[[1, 1, 1]]), np.zeros(3))


def test_layers_add_up_and_weights_may_be_negative(alex: LpipsBackbone) -> None:
    images = pictures(3, 64, 64)
    terms = alex.terms(images)
    assert terms.shape == (3, 5)
    np.testing.assert_allclose(terms.sum(1), alex.pairwise(images))
    turned = LpipsBackbone(seeded_network("alex"))
    for head in turned.net.lins:
        head.get_parameter("model.1.weight").neg_()
    np.testing.assert_array_equal(turned.pairwise(images), -alex.pairwise(images))


def test_the_map_of_differences_equals_the_packages() -> None:
    import lpips

    backbone, images = backbone_of("squeeze"), pictures(2, 65, 78)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "pretrained is deprecated"
        spatial = lpips.LPIPS(net="squeeze", pnet_rand=True, spatial=True, verbose=False)
    spatial.load_state_dict(backbone.net.state_dict())
    with torch.inference_mode():
        theirs = spatial(x[:1], x[1:])[0, 0].numpy()
    np.testing.assert_allclose(backbone.difference_map(images[0], images[1]), theirs, rtol=0, atol=1e-6)
    assert backbone.difference_map(images[0], images[0]).max() == 0
