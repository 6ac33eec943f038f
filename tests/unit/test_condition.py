# SPDX-License-Identifier: Apache-2.0
"""The condition tensor: one-hot labels, instance edges, dropping; and SDM on a dataset with edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from sis.config.files import dataset_card, label_space
from sis.data import edges as on_the_host
from sis.diffusion.noise import Noise
from sis.methods.contract import Context, MapBatch
from sis.methods.sdm import SDM, FitParams, SampleParams
from sis.nets.condition import condition, edge_map, keeps
from sis.training.loop import TrainBatch

INSTANCES = arrays.arrays(
    np.uint16, arrays.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.sampled_from([0, 1, 255, 65535])
)


def tensor(instances: NDArray) -> torch.Tensor:
    return torch.from_numpy(instances.astype(np.int64))


@given(INSTANCES)
def test_an_edge_is_a_pixel_with_another_id_above_below_left_or_right(instances: NDArray[np.uint16]) -> None:
    found = edge_map(tensor(instances))
    assert found.dtype == torch.bool and found.shape == instances.shape
    for b, y, x in itertools.product(*map(range, instances.shape)):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(j, i) for j, i in around if 0 <= j < instances.shape[1] and 0 <= i < instances.shape[2]]
        assert bool(found[b, y, x]) == any(instances[b, j, i] != instances[b, y, x] for j, i in inside)


@given(INSTANCES)
def test_the_edge_map_of_pictures_is_the_edge_map_of_tensors(instances: NDArray[np.uint16]) -> None:
    expected = edge_map(tensor(instances)).numpy()
    np.testing.assert_array_equal(on_the_host.edge_map(instances), expected)
    np.testing.assert_array_equal(on_the_host.edge_map(instances[0]), expected[0])


def test_two_touching_cars_have_an_edge_between_them_only_with_all_sixteen_bits() -> None:
    cars = np.array([[26001, 26001, 26002, 26002]], np.uint16)
    assert on_the_host.edge_map(cars).tolist() == [[False, True, True, False]]
    assert not on_the_host.edge_map(np.minimum(cars, 255)).any()


def test_the_last_channel_of_a_condition_is_the_edge_map_and_the_others_are_the_labels() -> None:
    labels = torch.tensor([[[0, 2], [1, 1]]])
    instances = torch.tensor([[[7, 7], [7, 8]]])
    found = condition(labels, 3, instances)
    assert found.dtype == torch.float32 and found.shape == (1, 4, 2, 2)
    assert found[0, :3].argmax(0).tolist() == labels[0].tolist() and found[0, :3].sum(0).eq(1).all()
    assert found[0, 3].tolist() == [[0, 1], [1, 1]]
    assert torch.equal(condition(labels, 3), found[:, :3])


def test_a_sample_that_is_not_kept_is_zero_throughout_and_the_others_are_untouched() -> None:
    labels, instances = torch.tensor([[[0, 1]], [[1, 0]]]), torch.tensor([[[1, 2]], [[1, 2]]])
    whole = condition(labels, 2, instances)
    found = condition(labels, 2, instances, torch.tensor([True, False]))
    assert torch.equal(found[0], whole[0])
    assert not found[1].any() and whole[1, 2].all()


def test_a_draw_equal_to_the_rate_drops_the_condition_but_a_rate_of_zero_drops_none() -> None:
    u = torch.tensor([0.0, 0.2, 0.25, 0.9])
    assert keeps(u, 0.2).tolist() == [False, False, True, True]
    assert keeps(u, 0.0).tolist() == [True] * 4


def sdm(*, edges: bool) -> SDM:
    card = dataset_card("scenes_tiny").model_copy(update={"edges": edges})
    context = Context(card, label_space(card.labels), (32, 32), "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = SDM(context, FitParams(**SDM.EXAMPLE_FIT), SampleParams(**SDM.EXAMPLE_SAMPLE))
        # Last convolutions start at zero, and a network that answers zero would see no difference.
        for parameter in method.network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return method


def maps(instances: torch.Tensor) -> MapBatch:
    return MapBatch(("a",), (0,), torch.ones(1, 32, 32, dtype=torch.int64), instances)


@pytest.mark.parametrize("edges", [True, False])
def test_sdm_sees_instances_exactly_where_the_dataset_has_edges(edges: bool) -> None:
    method, noise = sdm(edges=edges), Noise(0, (("a", 0),))
    one = torch.zeros(1, 32, 32, dtype=torch.int64)
    two = one.clone()
    two[:, :, 16:] = 26001
    with torch.inference_mode():
        images = [method.sample(maps(instances), noise) for instances in (one, two)]
    assert torch.equal(*images) != edges
    assert method.condition(maps(two)).shape[1] == method.context.labels.width + edges


def test_sdm_trains_without_instances_where_the_dataset_has_no_edges() -> None:
    batch = TrainBatch(("a",), torch.zeros(1, 3, 32, 32), maps(torch.zeros(0)).labels, None, Noise(0, (("a", 0),)))
    assert all(torch.isfinite(part).all() for part in sdm(edges=False).loss(batch).values())
