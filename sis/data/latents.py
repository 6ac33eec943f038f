# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures: mean and deviation of every latent of a split, encoded once and read by training and priors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sis.data.manifest import Manifest, read_manifest
from sis.errors import SisError, did_you_mean

#: Names of the tensors of a shard; the mirrored ones stand beside them where they were asked for.
MEAN, STD, MIRRORED = "mean", "std", "mirrored_"


class LatentSet:
    """The latents of one split, by image id.

    ids: in the order of the pairs. shape: (channels, height, width). autoencoder: id of the model that encoded them.
    mirrored: whether the mirrored pictures are there too.
    """

    def __init__(self, manifest: Manifest, device: str = "cpu") -> None:
        meta = manifest.meta
        self.manifest, self.device = manifest, device
        self.ids: list[str] = meta["ids"]
        self.shape: tuple[int, int, int] = tuple(meta["shape"])
        self.autoencoder: str = meta["autoencoder"]
        self.mirrored: bool = meta["mirrored"]
        self._index = {image_id: i for i, image_id in enumerate(self.ids)}
        self._starts: list[int] = meta["starts"]
        self._open = ExitStack()
        self._shards = [self._opened(path) for path in manifest.paths()]

    @classmethod
    def open(cls, folder: Path, device: str = "cpu") -> LatentSet:
        """Open a finished set after checking every byte; its tensors go to `device`."""
        return cls(read_manifest(folder, "latents"), device)

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, image_ids: Sequence[str], mirrored: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, float32 `(b, c, h, w)` each.

        Args:
            mirrored: bool `(b,)`, which of the pictures are mirrored; None: no picture is.

        Raises SisError for an image that is not of this split, and where no mirrored picture was encoded.
        """
        tossed = [False] * len(image_ids) if mirrored is None else mirrored.tolist()
        if any(tossed) and not self.mirrored:
            raise SisError("these latents hold no mirrored pictures", where=self.manifest.folder, fix="set flip: false")
        rows = [self._row(image_id, MIRRORED if m else "") for image_id, m in zip(image_ids, tossed, strict=True)]
        mean, std = (torch.stack(part).to(self.device) for part in zip(*rows, strict=True))
        return mean, std

    def _row(self, image_id: str, prefix: str) -> tuple[Tensor, Tensor]:
        if image_id not in self._index:
            raise SisError(
                f"no latent of {image_id!r}", where=self.manifest.folder, fix=did_you_mean(image_id, self.ids)
            )
        place = self._index[image_id]
        number = bisect_right(self._starts, place) - 1
        shard, row = self._shards[number], place - self._starts[number]
        return shard.get_slice(prefix + MEAN)[row], shard.get_slice(prefix + STD)[row]

    def _opened(self, path: Path) -> Any:
        try:
            return self._open.enter_context(safe_open(path, "pt"))
        except (SafetensorError, OSError) as error:
            raise SisError("damaged latents", where=path, fix="delete the folder and encode again") from error
