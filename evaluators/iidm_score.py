# SPDX-License-Identifier: Apache-2.0
"""The scores of IIDM's tables: mask accuracy M, aesthetics A, style S and FID, and the total T that they make (Eq. 8).

The paper leaves out that an FID above 100 counts as 100; the rules of the contest behind it say so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sis.errors import SisError

#: FID above which a method gets no points for it.
FID_CAP = 100.0
#: Ratings that a NIMA network gives chances to.
RATINGS = np.arange(1, 11)


def total_score(m: ArrayLike, a: ArrayLike, s: ArrayLike, fid: ArrayLike) -> NDArray[np.float64]:
    """T in percent (Eq. 8) of M and A in percent, S in percent (-100..100) and FID; any shapes that broadcast.

    M times (0.2 A + 0.3 (S / 2 + 50) + 0.5 (100 - FID)), FID capped at 100.
    """
    m, a, s, fid = (np.asarray(x, np.float64) for x in (m, a, s, fid))
    return m / 100 * (0.2 * a + 0.3 * (s / 2 + 50) + 0.5 * (100 - np.minimum(fid, FID_CAP)))


def mask_accuracy(labels: NDArray[np.integer], predicted: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of pixels `(b, h, w)` that agree, in percent of each image: `(b,)`; nothing is ignored."""
    return 100 * (labels == predicted).reshape(len(labels), -1).mean(1)


def aesthetic_percent(chances: NDArray[np.floating]) -> NDArray[np.float64]:
    """Expected rating, in percent of 10, from the chances of the ratings 1..10 `(b, 10)`: `(b,)` in 10..100.

    Raises SisError for rows that are not chances of ten ratings.
    """
    if chances.ndim != 2 or chances.shape[1] != len(RATINGS):
        fix = "name a network that rates, such as nima, under `iidm: {aesthetic: ...}`"
        raise SisError(f"the aesthetic score needs chances of ten ratings, not features {chances.shape}", fix=fix)
    exact = chances.astype(np.float64)
    if (exact < 0).any() or not np.allclose(exact.sum(1), 1, atol=1e-3):
        raise SisError("the aesthetic score needs chances of ten ratings: each row at least 0, with sum 1")
    return 10 * (exact / exact.sum(1, keepdims=True)) @ RATINGS
