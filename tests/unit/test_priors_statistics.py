# SPDX-License-Identifier: Apache-2.0
"""Which images and tokens a prior sees, at which resolution, and what is accumulated from them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from priors_example import Split, params
from torch.nn import functional as F

from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.priors.accumulator import Accumulator
from sis.priors.draws import Draws, drawn, released
from sis.priors.labels import latent_labels, released_labels
from sis.priors.statistics import Statistics, accumulate


def same(one: Statistics, two: Statistics) -> None:
    for name in ("joint", "classes", "positions"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            np.testing.assert_array_equal(a.count, b.count)
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(a.m2, b.m2, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (64, 48), (63, 1)])
def test_label_maps_are_scaled_down_as_torch_does(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).integers(0, 256, (3, 64, 48)).astype(np.uint8)
    theirs = F.interpolate(torch.from_numpy(maps)[:, None].float(), size=size, mode="nearest")[:, 0]
    found = latent_labels(maps, size)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, theirs.numpy())


def test_label_maps_are_not_scaled_up() -> None:
    with pytest.raises(SisError, match=r"cannot be scaled down to 9x8"):
        latent_labels(np.zeros((1, 8, 8)), (9, 8))
    with pytest.raises(SisError, match="cannot be scaled down"):
        latent_labels(np.zeros((8, 8)), (4, 4))


def test_the_released_filter_invents_ids_where_maps_change_size_only() -> None:
    maps = np.zeros((1, 48, 48), np.uint8)
    maps[:, :, 20:] = 90
    invented = set(np.unique(released_labels(maps, (32, 32), (32, 32)))) - {0, 90}
    assert invented and min(invented) > 0 and max(invented) < 90
    np.testing.assert_array_equal(released_labels(maps, (48, 48), (6, 6)), maps[:, ::8, ::8])
    with pytest.raises(SisError, match=r"ids 0\.\.255"):
        released_labels(np.full((1, 8, 8), 300), (8, 8), (4, 4))


def test_all_images_are_seen_once_or_a_keyed_part_of_them() -> None:
    ids = [f"i{n}" for n in range(50)]
    assert drawn(ids, params()).images == tuple(range(50))
    part = drawn(ids, params(n_images=20))
    assert len(set(part.images)) == 20 and list(part.images) == sorted(part.images)
    assert part.images != tuple(range(20)) and part != drawn(ids, params(n_images=20, seed=1))
    assert set(part.images) < set(drawn(ids, params(n_images=30)).images)


@pytest.mark.parametrize("draw", ["all", "replacement"])
def test_the_draw_does_not_depend_on_the_order_of_the_split(draw: str) -> None:
    ids = [f"i{n}" for n in range(40)]
    other = ids[::-1]
    one, two = (drawn(names, params(n_images=25, draw=draw)) for names in (ids, other))
    assert sorted(ids[i] for i in one.images) == sorted(other[i] for i in two.images)
    assert one.digest(ids) == two.digest(other)
    assert one.digest(ids) != drawn(ids, params(n_images=25, draw=draw, seed=7)).digest(ids)


def test_replacement_draws_every_image_equally_often() -> None:
    found = drawn([f"i{n}" for n in range(10)], params(n_images=20_000, draw="replacement"))
    assert len(found.images) == 20_000
    assert all(abs(times - 2000) < 200 for _, times in found.counted())


def test_the_released_draw_is_pythons_and_its_joint_prior_sees_a_quarter() -> None:
    found = drawn([str(n) for n in range(1000)], params(fidelity="release", n_images=30))
    assert found.images == tuple(random.Random(42).choices(range(1000), k=30))
    assert found.joint is not None and len(found.joint) == 256
    assert all(i % 64 < 16 for i in found.joint) and set(found.joint) == {i for i in range(1000) if i % 64 < 16}
    assert released(20, 5, stride=10, parts=2).joint == (0, 1, 10, 11)


def test_the_pieces_of_a_draw_make_it_whole() -> None:
    found = drawn([f"i{n}" for n in range(30)], params(n_images=100, draw="replacement"))
    shards = [found.shard(i, 7) for i in range(7)]
    assert sorted(i for s in shards for i in s.images) == list(found.images)
    owners = [{i for i, _ in s.counted()} for s in shards]
    assert sum(map(len, owners)) == len(set(found.images)), "all visits of an image stay together"
    assert found.shard(0, 1) == found
    with pytest.raises(SisError, match="no shard 7 of 7"):
        found.shard(7, 7)
    with pytest.raises(SisError, match="one stream of random numbers"):
        released(30, 10).shard(0, 2)
    with pytest.raises(SisError, match="the split is empty"):
        drawn([], params())


@pytest.mark.parametrize("latents", ["mode", "sample"])
@pytest.mark.parametrize("draw", ["all", "replacement"])
def test_shards_of_any_batch_size_merge_to_one_pass(draw: str, latents: str) -> None:
    split = Split.made(23, 4)
    chosen = params(n_images=30, draw=draw, latents=latents)
    draws = drawn(split.ids, chosen)

    def found(part: Draws, batch: int) -> Statistics:
        return accumulate(split.read, split.ids, part, 5, latents=chosen.latents, seed=chosen.seed, batch=batch)

    whole = found(draws, 16)
    parts = [found(draws.shard(i, 4), 3) for i in (2, 0, 3, 1)]
    same(parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]), whole)
    assert whole.spatial.count.max() == len(draws.images)


def test_an_image_that_was_drawn_twice_counts_twice_and_is_read_once() -> None:
    split = Split.made(6, 3)
    found = accumulate(split.read, split.ids, Draws((1, 1, 1, 4), 6), 3)
    assert sorted(split.reads) == [1, 4]
    plain = Accumulator(3, 3, (4, 6))
    plain.add(split.mean[[1, 1, 1, 4]], split.small[[1, 1, 1, 4]])
    same(found, Statistics(plain))


def test_samples_of_the_posterior_are_keyed_by_image_and_visit() -> None:
    split = Split.made(4, 2)
    found = accumulate(split.read, split.ids, Draws((2, 2), 4), 2, latents="sample", seed=9)
    noise = Noise(9, (("image-002", 0), ("image-002", 1))).normal("posterior", 0, (3, 4, 6)).numpy()
    np.testing.assert_allclose(found.spatial.mean[0], (split.mean[2] + 0.5 * noise).mean(0), atol=1e-6)
    again = accumulate(split.read, split.ids, Draws((2, 2), 4), 2, latents="sample", seed=10)
    assert not np.allclose(found.joint.mean, again.joint.mean)


def test_the_released_tokens_are_one_for_each_image_and_class() -> None:
    split = Split.made(40, 4)
    draws = released(40, 60, stride=8, parts=2)
    found = accumulate(split.read, split.ids, draws, 5)
    assert found.classes is not None and found.positions is not None
    visits = [len({int(k) for k in np.unique(split.small[i])} & {c}) for i in draws.images for c in range(5)]
    assert int(found.classes.count.sum()) == sum(visits)
    assert found.categorical.count[:, 0, 0].tolist() == [
        sum(c in split.small[i] for i in draws.images) for c in range(5)
    ]
    np.testing.assert_allclose(found.spatial.mean[0], split.mean[list(draws.images)].astype(float).mean(0), rtol=1e-10)
    assert draws.joint is not None and int(found.joint.count.sum()) == len(draws.joint) * 24
    same(found, accumulate(split.read, split.ids, draws, 5, batch=7))


def test_released_samples_of_an_image_differ_from_visit_to_visit() -> None:
    split = Split.made(3, 1)
    draws = Draws((1, 1), 3, (1,), 42)
    found = accumulate(split.read, split.ids, draws, 1, latents="sample")
    assert found.positions is not None and (found.positions.m2 > 0).all()


def test_bad_input_is_refused() -> None:
    split = Split.made(3, 3)
    with pytest.raises(SisError, match="no images to compute a prior from"):
        accumulate(split.read, split.ids, Draws((), 3), 3)
    with pytest.raises(SisError, match="label id 2 in statistics of 2 classes"):
        accumulate(split.read, split.ids, Draws((0, 1, 2), 3), 2)
    kinds = Statistics(Accumulator(1, 1, (1, 1))), Statistics(*(Accumulator(1, 1, (1, 1)) for _ in range(3)))
    with pytest.raises(SisError, match="of the paper and of the released code"):
        kinds[0].merge(kinds[1])
