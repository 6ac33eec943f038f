# SPDX-License-Identifier: Apache-2.0
"""Looks at a training: pictures of the averaged weights on fixed label maps, and the colours of its samples.

A tint of the samples is how trainings that predict noise fail first (guided-diffusion #81, improved-diffusion #30), so
mean and standard deviation of each channel are compared with those of the photographs of the very same label maps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sis.config.recipe import Recipe
from sis.data.atomic import remove_leftovers, write_bytes_atomic
from sis.data.contact_sheet import draw_sheet
from sis.data.images import decode_png, encode_png
from sis.data.schemas import CHANNELS
from sis.data.split_facts import spread
from sis.data.training_data import TrainingData
from sis.diffusion.noise import Noise
from sis.errors import SisError
from sis.methods.contract import MapBatch

#: (weights by name, label maps, noise) -> uint8 images `(b, 3, h, w)`
Sampler = Callable[[dict[str, Tensor], MapBatch, Noise], Tensor]

#: Pixels between pictures, and rows of the last picture.
_GAP, _ROWS = 2, 12


class Monitor:
    """The pictures of one training; `columns` of the newest one are what the log says of it."""

    def __init__(
        self, folder: Path, data: TrainingData, recipe: Recipe, seed: int, device: str, sampler: Sampler
    ) -> None:
        """Choose label maps that are evenly spread over the split; their samples always have the same noise."""
        self.folder, self._sampler = folder, sampler
        indices = spread(len(data), recipe.preview_images)
        raw, self._ids = data.batch(indices), [data.ids[i] for i in indices]
        labels = torch.from_numpy(raw.labels).long().to(device)
        instances = np.zeros_like(raw.labels) if raw.instances is None else raw.instances
        maps = torch.from_numpy(instances.astype(np.int64)).to(device)
        self._maps = MapBatch(tuple(self._ids), (0,) * len(indices), labels, maps)
        self._noise = Noise(seed, tuple((i, 0) for i in self._ids), device)
        # A class' channel is its id, and the channel of void has no colour: black.
        self._photographs, self._drawn = raw.images, data.labels.palette()[raw.labels]
        # Every so many steps, and after the last of each stage.
        regular = range(recipe.preview_every, recipe.total + 1, recipe.preview_every)
        self._steps = sorted({*regular, recipe.steps, recipe.total})
        self.columns: dict[str, float] = {}

    def due(self, done: int) -> bool:
        """Whether a picture is drawn after `done` steps."""
        return done in self._steps

    def start(self) -> None:
        """Remove the pictures of an earlier training."""
        for path in self.folder.glob("*.png"):
            path.unlink()

    def look(self, done: int, weights: dict[str, Tensor]) -> dict[str, float]:
        """Draw the picture of the weights after `done` steps; returns the log's columns. Touches no training."""
        try:
            samples = self._sampler(weights, self._maps, self._noise)
        except (SisError, torch.cuda.OutOfMemoryError) as error:
            what = error.what if isinstance(error, SisError) else "out of memory"
            fix = "lower preview_images, or set preview_every to 0"
            raise SisError(f"no picture of the training after {done} steps: {what}", fix=fix) from error
        images = samples.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        rows = [self._drawn, self._photographs, images]
        write_bytes_atomic(self._path(done), encode_png(_grid(rows)))
        self.columns = _statistics("sample", images) | _statistics("data", self._photographs)
        return self.columns

    def shown(self) -> dict[str, float]:
        """For the progress line: how far the samples' mean colour and contrast are from the photographs'.

        tint: the largest difference of channel means in grey levels. contrast: the samples' mean standard deviation
        over the photographs'.
        """
        if not self.columns:
            return {}
        means = [self.columns[f"sample_mean_{c}"] - self.columns[f"data_mean_{c}"] for c in CHANNELS]
        spreads = [sum(self.columns[f"{what}_std_{c}"] for c in CHANNELS) for what in ("sample", "data")]
        return {"tint": max(means, key=abs), "contrast": spreads[0] / max(spreads[1], 1e-9)}

    def finish(self) -> None:
        """Draw the samples of all pictures below one another, at most a dozen of them."""
        found = {done: samples for done in self._steps if (samples := self._read(done)) is not None}
        chosen = [list(found)[i] for i in spread(len(found), _ROWS - 1)]
        last = list(found)[-1:]
        rows = {"label map": self._drawn, "photograph": self._photographs}
        rows |= {f"step {done:,}": found[done] for done in dict.fromkeys(chosen + last)}
        caption = "Samples of the averaged weights; label maps of the training split, the same noise throughout."
        picture = draw_sheet("Training", caption, self._ids, list(rows), [list(r) for r in rows.values()])
        write_bytes_atomic(self.folder / "over_time.png", picture)
        remove_leftovers(self.folder)

    def _path(self, done: int) -> Path:
        return self.folder / f"step-{done:06d}.png"

    def _read(self, done: int) -> list[NDArray[np.uint8]] | None:
        """The samples on a picture; None where it is gone or damaged."""
        try:
            picture = decode_png(self._path(done).read_bytes(), mode="RGB")
        except (OSError, SisError):
            return None
        height, width = self._photographs.shape[1:3]
        row = picture[2 * (height + _GAP) :]
        starts = [k * (width + _GAP) for k in range(len(self._ids))]
        cells = [row[:height, x : x + width] for x in starts]
        return cells if all(c.shape == (height, width, 3) for c in cells) else None


def _grid(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of pictures `(n, h, w, 3)` as one picture."""
    count, height, width, _ = rows[0].shape
    sheet = np.full((len(rows) * (height + _GAP) - _GAP, count * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = r * (height + _GAP), c * (width + _GAP)
            sheet[y : y + height, x : x + width] = picture
    return sheet


def _statistics(what: str, images: NDArray[np.uint8]) -> dict[str, float]:
    """Mean and standard deviation of each channel over all pixels of uint8 `(n, h, w, 3)`."""
    pixels = images.reshape(-1, 3).astype(np.float64)
    values = {"mean": pixels.mean(0), "std": pixels.std(0)}
    return {f"{what}_{n}_{c}": float(v) for n, row in values.items() for c, v in zip(CHANNELS, row, strict=True)}
