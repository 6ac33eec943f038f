# SPDX-License-Identifier: Apache-2.0
"""scp: SCP-Diff's pictures, resized to the dataset's size without crop or aspect (antialiased bilinear).

Labels by nearest neighbour. Release (AIR-DISCOVER/SCP-Diff-Toolkit @859f671): label maps go through the same bilinear
filter as photographs, which invents ids at boundaries. Those that no class has are kept as they are: the authors'
priors count them as classes of their own, and whoever needs one-hot channels refuses them by name.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sis.data.pair import Pair
from sis.data.policies import Policy
from sis.data.resize import bilinear, nearest, rounded


class Scp(Policy):
    def view(self, pair: Pair) -> Pair:
        photo = pair.photograph
        if photo is not None and photo.shape[:2] != self.size:
            photo = rounded(bilinear(photo, self.size))
        instance = None if pair.instance is None else nearest(pair.instance, self.size)
        source = None if pair.label.shape == self.size else pair.label
        return replace(pair, photograph=photo, label=self._label(pair), instance=instance, source_label=source)

    def _label(self, pair: Pair) -> NDArray[np.uint8]:
        if not self.release:
            return nearest(pair.label, self.size)
        void = [] if self.labels.void is None else [self.labels.void]
        known = np.array([*range(self.labels.count), *void], np.uint8)
        ids = np.arange(256, dtype=np.uint8)
        ids[self.labels.to_file(known)] = known
        return ids[rounded(bilinear(self.labels.to_file(pair.label), self.size))]


POLICY = Scp
