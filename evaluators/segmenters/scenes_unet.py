# SPDX-License-Identifier: Apache-2.0
"""A small U-Net that judges the built-in scenes in half a minute of training on one core; sides divisible by 8.

On other datasets it is a local judge: it shows the machinery at work and ranks runs among themselves, no more.

Its features: means over the picture of the outputs of stage 1, stage 2 and the bottleneck (texture, parts,
objects), `d = 7 width`. Each channel is standardised by its mean and standard deviation over the real
training images, so that every channel weighs the same in a Fréchet distance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluators.metric import Progress, silent
from sis.config.judges import SegmenterCard
from sis.data.atomic import atomic_path
from sis.data.labels import LabelSpace
from sis.data.manifest import publish_file, read_manifest
from sis.data.pairs import PairSet
from sis.data.provenance import RunRecord
from sis.data.tensors import write_tensors
from sis.errors import SisError

NAME = "scenes_unet"
VOID = 255
#: A channel's spread is taken as at least this share of the median spread, so that dead channels stay quiet.
LEAST_SPREAD = 0.05


class UNet(nn.Module):
    """Encoder of 4 stages with 2 convolutions each, decoder of 3 with one, skips added."""

    feature_mean: Tensor
    feature_spread: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        w = width
        self.encoder = nn.ModuleList([_two(3, w), _two(w, 2 * w), _two(2 * w, 4 * w), _two(4 * w, 4 * w)])
        self.narrow = nn.ModuleList([nn.Conv2d(4 * w, 4 * w, 1), nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(2 * w, w, 1)])
        self.decoder = nn.ModuleList([_one(4 * w, 4 * w), _one(2 * w, 2 * w), _one(w, w)])
        self.head = nn.Conv2d(w, classes, 1)
        self.register_buffer("feature_mean", torch.zeros(7 * w))
        self.register_buffer("feature_spread", torch.ones(7 * w))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` float `(b, 3, h, w)` in [-1, 1] -> logits `(b, classes, h, w)`, raw features `(b, d)`."""
        stages = []
        for i, stage in enumerate(self.encoder):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
            stages.append(x)
        for narrow, decode, skip in zip(self.narrow, self.decoder, stages[2::-1], strict=True):
            x = decode(F.interpolate(narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False) + skip)
        pooled = torch.cat([stages[i].mean((2, 3)) for i in (0, 1, 3)], 1)
        return self.head(x), pooled


class ScenesUnet:
    """The trained judge: pictures in, label ids and standardised features out."""

    def __init__(self, net: UNet, ids: list[int]) -> None:
        self.net = net.eval()
        self._ids = np.array(ids, np.uint8)

    def predict(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Segment `(b, h, w, 3)`: label ids uint8 `(b, h, w)` and features float32 `(b, d)`."""
        if images.shape[1] % 8 or images.shape[2] % 8:
            raise SisError(f"{NAME} needs sides divisible by 8, found {images.shape[1]}x{images.shape[2]}")
        with torch.inference_mode():
            logits, pooled = self.net(_pixels(images))
            features = (pooled - self.net.feature_mean) / self.net.feature_spread
        return self._ids[logits.argmax(1).numpy()], features.numpy()


def train(pairs: PairSet, card: SegmenterCard, out: Path, progress: Progress = silent) -> ScenesUnet:
    """Train on the card's pairs and write `out` (safetensors) with its manifest; the card's seed decides all.

    Cross-entropy over evaluated classes (void and ignored ids do not count) with rare classes weighted up,
    flips, light jitter of brightness and contrast, AdamW with one learning-rate cycle.
    """
    run = RunRecord.start(seeds={"segmenter": card.seed})
    space = pairs.labels
    images, targets = _load_pairs(pairs, space, card.images)
    net = _new_net(len(space.evaluated_ids), card.width, card.seed)
    _fit(net, images, targets, card, progress)
    judge = ScenesUnet(net, space.evaluated_ids)
    _standardise(judge, images)
    meta = {
        "segmenter": NAME,
        "dataset": pairs.dataset,
        "split": pairs.split,
        "size": list(pairs.size),
        "labels": space.name,
        "ids": space.evaluated_ids,
        "pairs_digest": pairs.manifest.digest,
        "card": card.model_dump(mode="json"),
    }
    with atomic_path(out) as temporary:
        write_tensors({k: v.contiguous() for k, v in net.state_dict().items()}, temporary)
        publish_file(temporary, out, "segmenter", meta, run)
    return judge


def load(path: Path) -> ScenesUnet:
    """Load a trained judge. Raises SisError when the file is missing, altered or of another network."""
    meta = read_manifest(path, "segmenter").meta
    try:
        card = SegmenterCard.model_validate(meta["card"])
        net = _new_net(len(meta["ids"]), card.width, 0)
        net.load_state_dict(load_file(path))
    except (KeyError, RuntimeError, ValidationError) as error:
        raise SisError(f"these weights do not fit {NAME}", where=path, fix="train the segmenter again") from error
    return ScenesUnet(net, meta["ids"])


def _fit(net: UNet, images: NDArray, targets: NDArray, card: SegmenterCard, progress: Progress) -> None:
    rng = np.random.default_rng([card.seed, 1])
    optimiser = torch.optim.AdamW(net.parameters(), lr=card.learning_rate, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=card.learning_rate, total_steps=card.steps + 1, pct_start=0.2
    )
    weights = _class_weights(targets, net.head.out_channels)
    net.train()
    order = np.empty(0, np.int64)
    for step in range(card.steps):
        while len(order) < card.batch_size:
            order = np.concatenate([order, rng.permutation(len(images))])
        chosen, order = order[: card.batch_size], order[card.batch_size :]
        x, y = _augment(_pixels(images[chosen]), torch.from_numpy(targets[chosen]), card.jitter, rng)
        loss = F.cross_entropy(net(x)[0], y.long(), weights, ignore_index=VOID)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        progress(step + 1, card.steps, {"loss": loss.item()})


def _class_weights(targets: NDArray[np.uint8], classes: int) -> Tensor:
    """Weights by frequency^-1/2, so that thin poles are learnt too; 0 for classes that never occur."""
    counts = np.bincount(targets.reshape(-1), minlength=256)[:classes].astype(np.float64)
    weights = np.divide(1, np.sqrt(counts), out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights / weights.sum() * classes).float()


def _augment(x: Tensor, y: Tensor, jitter: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the pictures; scale and shift their grey levels by up to `jitter`."""
    flip = torch.from_numpy(rng.random(len(x)) < 0.5)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    y = torch.where(flip[:, None, None], y.flip(2), y)
    gain, shift = torch.from_numpy(rng.uniform(-jitter, jitter, (2, len(x), 1, 1, 1)).astype(np.float32))
    return x * (1 + gain) + shift, y


def _standardise(judge: ScenesUnet, images: NDArray[np.uint8]) -> None:
    """Fix the mean and spread of each feature channel over the training images."""
    raw = np.concatenate([judge.predict(images[i : i + 64])[1] for i in range(0, len(images), 64)])
    spread = raw.std(0)
    spread = np.maximum(spread, max(LEAST_SPREAD * float(np.median(spread)), 1e-6))
    judge.net.feature_mean.copy_(torch.from_numpy(raw.mean(0)))
    judge.net.feature_spread.copy_(torch.from_numpy(spread))


def _load_pairs(pairs: PairSet, space: LabelSpace, most: int | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`most` evenly spaced pictures `(n, h, w, 3)` and their class indices `(n, h, w)`, 255 where no class counts."""
    if not len(pairs):
        raise SisError("no pairs to train the segmenter on", where=f"{pairs.dataset}/{pairs.split}")
    count = min(most or len(pairs), len(pairs))
    index = np.full(256, VOID, np.uint8)
    index[space.evaluated_ids] = np.arange(len(space.evaluated_ids), dtype=np.uint8)
    images = np.empty((count, *pairs.size, 3), np.uint8)
    targets = np.empty((count, *pairs.size), np.uint8)
    for i in range(count):
        pair = pairs.get((2 * i + 1) * len(pairs) // (2 * count))
        images[i], targets[i] = pair.image, index[pair.label]
    return images, targets


def _new_net(classes: int, width: int, seed: int) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(classes, width)


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)  # channels last in memory already
    return x.float().div_(127.5).sub_(1)


def _one(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _two(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_one(inputs, outputs), *_one(outputs, outputs))
