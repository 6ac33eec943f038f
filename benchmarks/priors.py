# SPDX-License-Identifier: Apache-2.0
"""Prior statistics against the released way of taking them, on the same images in one run, equality asserted.

The released categorical prior encodes an image once for each class in it and keeps one token of each; ours encodes it
once and adds every token (or the very same ones, which is how equality is checked). A narrow AutoencoderKL with random
weights stands for the real one; the wider it is, the nearer the ratio comes to the number of classes in an image.
Times are processor time of one thread.

Run: python benchmarks/priors.py [--images 12] [--size 512] [--classes 183] [--width 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.priors.accumulator import Accumulator
from sis.priors.draws import Draws, TokenPicker
from sis.priors.labels import latent_labels
from sis.priors.prior import Prior
from sis.priors.statistics import Statistics

FACTOR, CHANNELS, PER_IMAGE = 8, 4, 10


def autoencoder(width: int) -> Any:
    """AutoencoderKL with random weights: Stable Diffusion's factor and latent channels, narrow and shallow."""
    from diffusers import AutoencoderKL  # after sis, which makes torchvision importable

    torch.manual_seed(0)
    blocks = (width, width, 2 * width, 2 * width)
    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=blocks, layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=8,
    )  # fmt: skip
    return net.eval().requires_grad_(False)


def pictures(count: int, size: int, classes: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """Noise images in [-1, 1] and blocky label maps with about ten classes each."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(-1, 1, (count, 3, size, size)).astype(np.float32))
    blocks = np.stack([rng.choice(rng.choice(classes, PER_IMAGE, replace=False), (8, 8)) for _ in range(count)])
    return images, np.kron(blocks, np.ones((size // 8, size // 8))).astype(np.uint8)


def encode(net: Any, image: Tensor) -> Tensor:
    return net.encode(image[None]).latent_dist.mode()[0]


class Released:
    """One token for each class, the image encoded anew for every class of it."""

    def __init__(self, net: Any, picker: TokenPicker) -> None:
        self.net, self.picker = net, picker
        self.tokens: dict[int, list[Tensor]] = {}

    def add(self, image: Tensor, labels: NDArray[np.int64]) -> None:
        chosen = self.picker.pick(labels)
        for class_id in np.unique(labels):
            y, x = np.argwhere(chosen & (labels == class_id))[0]
            self.tokens.setdefault(int(class_id), []).append(encode(self.net, image)[:, y, x])

    def mean(self, class_id: int) -> NDArray:
        return torch.stack(self.tokens[class_id]).double().mean(0).numpy()


class Ours:
    """Every image encoded once; the same tokens go to one accumulator for comparison, all of them to another."""

    def __init__(self, net: Any, picker: TokenPicker, state: Accumulator) -> None:
        self.net, self.picker, self.all = net, picker, state
        self.picked = Accumulator(state.classes, CHANNELS, state.size)

    def add(self, image: Tensor, labels: NDArray[np.int64]) -> float:
        """Add an image; returns the seconds that the statistics of all its tokens took beside encoding."""
        latent = encode(self.net, image)[None]
        self.picked.add(latent, labels[None], self.picker.pick(labels)[None])
        start = time.process_time()
        self.all.add(latent, labels[None])
        return time.process_time() - start


def timed(function: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = function(*given)
    return time.process_time() - start, found


def compare(net: Any, images: Tensor, labels: NDArray[np.int64], state: Accumulator) -> None:
    """Both ways take turns image by image; `state` has seen images before, as it has in all but the first."""
    draws = Draws(tuple(range(len(images))), len(images), seed=42)
    theirs = Released(net, draws.picker())
    ours = Ours(net, draws.picker(), state)
    encode(net, images[0])  # warm up
    seconds: dict[str, list[float]] = {"theirs": [], "ours": [], "adding": []}
    for image, one in zip(images, labels, strict=True):
        seconds["theirs"].append(timed(theirs.add, image, one)[0])
        taken, adding = timed(ours.add, image, one)
        seconds["ours"].append(taken)
        seconds["adding"].append(adding)
    found = ours.picked.over_positions()
    gap = max(float(np.abs(found.mean[c, :, 0, 0] - theirs.mean(c)).max()) for c in theirs.tokens)
    assert gap <= 1e-6, f"categorical means differ by {gap}"
    assert all(found.count[c, 0, 0] == len(tokens) for c, tokens in theirs.tokens.items())
    a, b, c = (sum(seconds[name]) / len(images) * 1000 for name in seconds)
    per_image = sum(len(tokens) for tokens in theirs.tokens.values()) / len(images)
    print(f"released way {a:10.1f} ms/image   ({per_image:.1f} classes, so many encodings of an image)")
    print(f"ours         {b:10.1f} ms/image   of that {c:.2f} ms for the statistics of all tokens")
    print(f"ratio        {a / b:10.1f} x          categorical means of the same tokens differ by {gap:.1e}")


def accumulator(classes: int, size: int) -> Accumulator:
    """The state by itself at full size: adding, bytes, merging, the priors that follow."""
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(64, CHANNELS, size, size)).astype(np.float32)
    blocks = np.stack([rng.choice(rng.choice(classes, PER_IMAGE, replace=False), (8, 8)) for _ in latents])
    labels = latent_labels(np.kron(blocks, np.ones((size, size), np.uint8)), (size, size))
    state = Accumulator(classes, CHANNELS, (size, size))
    rounds = [timed(state.add, latents, labels)[0] / len(latents) * 1000 for _ in range(6)]
    add = statistics.median(rounds[1:])
    best = "kept" if add <= 2 else "MISSED"
    print(f"add          {add:10.2f} ms/image   goal 2 ms {best}; {rounds[0]:.2f} the first time")
    print(f"state        {state.nbytes / 1e6:10.1f} MB         {classes} classes at {size}x{size}; goal 60 MB "
          f"{'kept' if state.nbytes <= 60e6 else 'MISSED'}")  # fmt: skip
    merged = statistics.median(timed(state.merge, state)[0] for _ in range(3))
    print(f"merge        {merged:10.2f} s          two such states")
    print(f"priors       {timed(Prior.of, Statistics(state))[0]:10.2f} s          all three from one state")
    return state


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=183)
    parser.add_argument("--width", type=int, default=8)
    chosen = parser.parse_args(given)
    torch.set_num_threads(1)
    state = accumulator(chosen.classes, chosen.size // FACTOR)
    images, maps = pictures(chosen.images, chosen.size, chosen.classes)
    small = latent_labels(maps, (chosen.size // FACTOR, chosen.size // FACTOR))
    compare(autoencoder(chosen.width), images, small, state)


if __name__ == "__main__":
    main()
