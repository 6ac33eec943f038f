# SPDX-License-Identifier: Apache-2.0
"""exact: pictures have the dataset's size already; any other size is refused."""

from __future__ import annotations

from sis.data.pair import Pair
from sis.data.policies import Policy
from sis.errors import SisError


class Exact(Policy):
    def view(self, pair: Pair) -> Pair:
        found = pair.label.shape if pair.photograph is None else pair.photograph.shape[:2]
        if found != self.size or pair.label.shape != self.size:
            raise SisError(
                f"picture {found}, label map {pair.label.shape}, the dataset's size is {self.size} (height, width)",
                where=pair.image_id,
                fix="choose a policy that resizes: `prepare: {policy: ...}`",
            )
        return pair


POLICY = Exact
