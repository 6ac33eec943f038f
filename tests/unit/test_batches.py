# SPDX-License-Identifier: Apache-2.0
"""Training batches: order, cuts and mirrors follow from seed, epoch and image id, and are written down."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.labels import LabelSpace
from sis.data.pairs import PairSet
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import TrainingData
from sis.diffusion.noise import Noise
from sis.training.loop import TrainBatch, TrainingRun, keyed_draws

COUNT = 10


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("sis-ahead")]


class InMemory:
    """Records of random pixels; `cuts` remembers what was drawn for each position of each batch."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 4, (COUNT, 8, 8), dtype=np.uint8)
        self.cuts: list[tuple[int, int, int]] = []

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        batch.images[position], batch.labels[position] = self.images[index], self.labels[index]
        if batch.instances is not None:
            batch.instances[position] = self.labels[index].astype(np.uint16) * 20000
        if draw is not None:
            self.cuts.append((index, draw("short side", 256, 321), draw("crop row", 0, 10**6)))


#: Of four classes b and c change places in the mirror.
SIDES = LabelSpace.model_validate(
    {
        "name": "sides",
        "void": 255,
        "classes": [
            {"id": i, "name": name, "colour": [i, 0, 0], "mirror": {"b": 2, "c": 1}.get(name)}
            for i, name in enumerate("abcd")
        ],
    }
)


def data(records: InMemory | None = None, **facts: bool) -> TrainingData:
    facts = {"instances": True, "augmented": False, "release": True} | facts
    return TrainingData([f"train-{i}" for i in range(COUNT)], (8, 8), SIDES, records or InMemory(), **facts)


def batches(recipe: Recipe, seed: int = 0) -> list[TrainBatch]:
    run, everything = TrainingRun(Path(), "k", seed, "cpu", "t"), data()
    return [run.batch(step, everything, recipe) for step in range(COUNT)]


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    ids = [i for b in batches(Recipe(batch_size=4)) for i in b.image_ids]
    epochs = [ids[k * COUNT : (k + 1) * COUNT] for k in range(4)]
    assert all(sorted(e) == sorted(data().ids) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    run, everything = TrainingRun(Path(), "k", 0, "cpu", "t"), data()
    forwards = batches(Recipe(batch_size=4))
    backwards = [run.batch(step, everything, Recipe(batch_size=4)) for step in reversed(range(COUNT))][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert one.image_ids == two.image_ids and torch.equal(one.images, two.images)
    assert [b.image_ids for b in batches(Recipe(batch_size=4), seed=1)] != [b.image_ids for b in forwards]


def test_an_image_is_mirrored_alike_wherever_it_stands_in_a_batch() -> None:
    def first_epoch(size: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for batch in batches(Recipe(batch_size=size)):
            for image_id, image in zip(batch.image_ids, batch.images, strict=True):
                found.setdefault(image_id, image)
        return found

    two, five = first_epoch(2), first_epoch(5)
    assert all(torch.equal(two[i], five[i]) for i in data().ids)


def test_image_label_and_instances_are_mirrored_together() -> None:
    everything, pixels = data(), InMemory()
    mirrored = plain = 0
    for batch in batches(Recipe(batch_size=4)):
        for k, image_id in enumerate(batch.image_ids):
            i = everything.ids.index(image_id)
            image = torch.from_numpy(pixels.images[i]).permute(2, 0, 1).float() / 127.5 - 1
            label = torch.from_numpy(pixels.labels[i]).long()
            flipped = torch.equal(batch.images[k], image.flip(-1))
            assert flipped or torch.equal(batch.images[k], image)
            expected = label.flip(-1) if flipped else label
            assert torch.equal(batch.labels[k], expected)
            assert batch.instances is not None and torch.equal(batch.instances[k], expected * 20000)
            mirrored, plain = mirrored + flipped, plain + (not flipped)
    assert mirrored > 5 and plain > 5


def test_nothing_is_mirrored_without_flip() -> None:
    everything, pixels = data(), InMemory()
    for batch in batches(Recipe(batch_size=3, flip=False)):
        wanted = np.stack([pixels.images[everything.ids.index(i)] for i in batch.image_ids])
        assert torch.equal(batch.images, torch.from_numpy(wanted).permute(0, 3, 1, 2).float() / 127.5 - 1)


def test_noise_of_an_image_differs_from_epoch_to_epoch() -> None:
    drawn: dict[str, list[Tensor]] = {}
    for batch in batches(Recipe(batch_size=5)):
        for image_id, noise in zip(batch.image_ids, batch.noise.normal("eps", 0, (4,)), strict=True):
            drawn.setdefault(image_id, []).append(noise)
    assert all(not torch.equal(n[0], n[1]) for n in drawn.values())


#: sha256 of ids, images and labels of eight batches, written down by the code that trained the demo's first models.
FIRST_BATCHES = {
    True: "b879e4278ece795be319effdde3ffe13983d6127d29bbc4d546dddec27f1daac",
    False: "5c85ae289c0789c3c5eff48935439e230d31b14b866ded996baf7c245f69208e",
}


@pytest.mark.parametrize("flip", [True, False])
def test_the_batches_of_the_built_in_scenes_never_change(tiny_pairs: Path, tmp_path: Path, flip: bool) -> None:
    pairs = PairSet.open(tiny_pairs / "train")
    run, everything = TrainingRun(Path(), "k", 0, "cpu", "t"), TrainingData.open(pairs, tmp_path)
    digest = hashlib.sha256()
    for step in range(8):
        batch = run.batch(step, everything, Recipe(batch_size=10, flip=flip))
        assert batch.instances is None
        tosses = Noise(0, tuple((i, (step * 10 + k) // 48) for k, i in enumerate(batch.image_ids))).uniform(
            "flip", 0, ()
        )
        for k, image_id in enumerate(batch.image_ids):
            pair, turn = pairs.by_id(image_id), -1 if flip and tosses[k] < 0.5 else 1
            image = (pair.image[:, ::turn].astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)
            assert np.array_equal(batch.images[k].numpy(), image)
            assert np.array_equal(batch.labels[k].numpy(), pairs.labels.channels(pair.label)[:, ::turn])
        digest.update(repr(batch.image_ids).encode())
        digest.update(batch.images.contiguous().numpy().tobytes() + batch.labels.numpy().tobytes())
    assert digest.hexdigest() == FIRST_BATCHES[flip]


def test_batches_that_are_read_ahead_are_those_of_single_steps() -> None:
    run, everything = TrainingRun(Path(), "k", 3, "cpu", "t"), data()
    ahead = list(run.batches(range(4, 12), everything, Recipe(batch_size=3)))
    for step, batch in zip(range(4, 12), ahead, strict=True):
        alone = run.batch(step, everything, Recipe(batch_size=3))
        assert batch.image_ids == alone.image_ids and batch.noise.keys == alone.noise.keys
        assert torch.equal(batch.images, alone.images) and torch.equal(batch.labels, alone.labels)


def test_cuts_follow_from_seed_epoch_and_image_alone() -> None:
    def cuts(size: int, seed: int = 0) -> list[tuple[int, int, int]]:
        """The cuts of two epochs, epoch by epoch, sorted by image."""
        records = InMemory()
        everything = data(records, augmented=True)
        everything.threads = 0
        steps = range(2 * COUNT // size)
        for _ in TrainingRun(Path(), "k", seed, "cpu", "t").batches(steps, everything, Recipe(batch_size=size)):
            pass
        return sorted(records.cuts[:COUNT]) + sorted(records.cuts[COUNT:])

    assert cuts(2) == cuts(5) == cuts(10) == cuts(20)
    first, second = cuts(10)[:COUNT], cuts(10)[COUNT:]
    assert [c[0] for c in first] == [c[0] for c in second] == list(range(COUNT))
    assert not {c[2] for c in first} & {c[2] for c in second}
    assert not {c[2] for c in first} & {c[2] for c in cuts(10, seed=1)}


def test_a_draw_is_the_keyed_whole_number_of_its_purpose() -> None:
    keys = tuple((f"image-{i}", epoch) for i in range(400) for epoch in range(2))
    noise = Noise(7, keys)
    draws = keyed_draws(noise)
    for purpose, low, high in (("crop row", 0, 65), ("short side", 256, 321), ("short side", 3, 4)):
        drawn = [draw(purpose, low, high) for draw in draws]
        assert drawn == (low + noise.integers(purpose, 0, (), high - low)).tolist()
        assert min(drawn) == low and max(drawn) == high - 1
        assert [keyed_draws(Noise(7, keys[k : k + 1]))[0](purpose, low, high) for k in (0, 5, 799)] == [
            drawn[k] for k in (0, 5, 799)
        ]
    counts = np.bincount([draw("crop column", 0, 8) for draw in draws], minlength=8)
    assert counts.sum() == 800 and (abs(counts - 100) < 45).all()  # 4.8 standard deviations


def test_the_draws_of_an_image_never_change() -> None:
    """Written down: a change would silently give every published model other training pictures."""
    draw = keyed_draws(Noise(0, (("train-00001", 3),)))[0]
    drawn = [draw("short side", 256, 321), draw("crop row", 0, 65), draw("crop column", 0, 65), draw("crop row", 0, 10)]
    assert drawn == [302, 49, 40, 7]


@pytest.mark.parametrize("release", [False, True])
def test_left_and_right_classes_change_places_only_in_mirrored_pictures(release: bool) -> None:
    pixels, everything = InMemory(), data(release=release)
    run, mirrored = TrainingRun(Path(), "k", 0, "cpu", "t"), 0
    for step in range(5):
        batch = run.batch(step, everything, Recipe(batch_size=4))
        for k, image_id in enumerate(batch.image_ids):
            i = everything.ids.index(image_id)
            own = torch.from_numpy(pixels.images[i]).permute(2, 0, 1).float() / 127.5 - 1
            label = torch.from_numpy(pixels.labels[i]).long()
            if not torch.equal(batch.images[k], own):
                mirrored += 1
                label = label.flip(-1) if release else torch.tensor([0, 2, 1, 3])[label.flip(-1)]
            assert torch.equal(batch.labels[k], label)
    assert 3 < mirrored < 17
