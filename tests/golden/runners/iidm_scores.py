# SPDX-License-Identifier: Apache-2.0
"""IIDM's scores: the total and its parts, and the colour histograms that its style similarity may mean."""

from __future__ import annotations

import numpy as np

from evaluators.colour_histograms import similarity
from evaluators.iidm_score import aesthetic_percent, mask_accuracy, total_score
from runners import Case, Data, Found, Near, names

#: Double precision in another order.
ROUNDING = 1e-9


def score(case: Case, data: Data) -> Found:
    column = {name: data["published"][:, i] for i, name in enumerate(case["config"]["columns"])}
    # The further rows have the columns of Eq. 8 in the same order.
    m, a, fid, s = data["extra"].T
    return {
        "T_recomputed": Near(total_score(column["M"], column["A"], column["S"], column["FID"]), ROUNDING),
        "M_toy": Near(mask_accuracy(data["gt_mask"], data["pred_mask"]).mean(), ROUNDING),
        "T_extra": Near(total_score(m, a, s, fid), ROUNDING),
        "A_toy": Near(aesthetic_percent(data["rating_distribution"]), ROUNDING),
    }


def style_similarity(case: Case, data: Data) -> Found:
    pairs = list(zip(data["ref"], data["gen"], strict=True))
    return {
        name: Near(np.array([similarity(name, ref, gen) for ref, gen in pairs]), ROUNDING)
        for name in names(case["outputs"])
    }
