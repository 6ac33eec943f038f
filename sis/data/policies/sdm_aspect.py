# SPDX-License-Identifier: Apache-2.0
"""sdm_aspect: SDM's pictures of Cityscapes, short side to the target and the aspect kept; no crop in training."""

from __future__ import annotations

from sis.data.pair import Pair
from sis.data.policies import Policy
from sis.data.policies.sdm import resized, with_short_side
from sis.errors import SisError


class SdmAspect(Policy):
    def view(self, pair: Pair) -> Pair:
        whole = pair.label.shape if pair.photograph is None else pair.photograph.shape[:2]
        short = min(self.size)
        size = with_short_side(whole, short)
        if size != self.size:
            raise SisError(
                f"a picture of {whole} becomes {size}, the dataset's size is {self.size} (height, width)",
                where=pair.image_id,
                fix="this policy keeps the aspect; choose the size to match, or another policy",
            )
        return resized(pair, short, size, self.release)


POLICY = SdmAspect
