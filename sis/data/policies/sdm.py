# SPDX-License-Identifier: Apache-2.0
"""sdm: SDM's square pictures. Training: short side drawn from [s, 1.25 s], random crop; judging: squashed to s x s.

Photographs: box halvings while the short side is at least twice the target, then bicubic; labels and instances: one
nearest-neighbour step from their full size (WeilunWang/semantic-diffusion-model @7171f37, gd/image_datasets.py).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sis.data.pair import Pair
from sis.data.policies import Draw, Policy
from sis.data.resize import Size, bicubic, halve, halvings, nearest

#: The largest short side of a training picture is size / _LEAST_CROP, rounded up.
_LEAST_CROP = 0.8
#: What an instance id becomes where the released code reads 16 bits as 8 (research: every Pillow clips).
SATURATED = 255


class Sdm(Policy):
    AUGMENTS = True

    @property
    def _largest(self) -> int:
        return math.ceil(min(self.size) / _LEAST_CROP)

    def keep(self, pair: Pair) -> Pair:
        """Photograph: the halvings that every draw begins with; labels and instances: as they are."""
        if pair.photograph is None:
            return pair
        return replace(pair, photograph=halve(pair.photograph, halvings(pair.photograph.shape[:2], self._largest)))

    def view(self, pair: Pair) -> Pair:
        return resized(pair, min(self.size), self.size, self.release)

    def augment(self, pair: Pair, draw: Draw) -> Pair:
        side = min(self.size)
        short = draw("short side", side, self._largest + 1)
        size = with_short_side(pair.image.shape[:2], short)
        pair = resized(pair, short, size, self.release)
        top = draw("crop row", 0, size[0] - side + 1)
        left = draw("crop column", 0, size[1] - side + 1)

        def cut(array: NDArray) -> NDArray:
            return array[top : top + side, left : left + side]

        instance = None if pair.instance is None else cut(pair.instance)
        return replace(pair, photograph=cut(pair.image), label=cut(pair.label), instance=instance, source_label=None)


def with_short_side(size: Size, target: int) -> Size:
    """What a picture of `size` becomes when its short side becomes `target`; the aspect is that of its last halving."""
    times = halvings(size, target)
    height, width = size[0] >> times, size[1] >> times
    scale = target / min(height, width)
    return round(height * scale), round(width * scale)


def resized(pair: Pair, target: int, size: Size, release: bool) -> Pair:
    """Bring a pair to `size`; `target` is the short side that decides how often the photograph is halved."""
    photo, instance = pair.photograph, pair.instance
    if photo is not None:
        photo = bicubic(halve(photo, halvings(photo.shape[:2], target)), size)
    if instance is not None:
        instance = nearest(np.minimum(instance, SATURATED) if release else instance, size)
    source = None if pair.label.shape == size else pair.label
    return replace(pair, photograph=photo, label=nearest(pair.label, size), instance=instance, source_label=source)


POLICY = Sdm
