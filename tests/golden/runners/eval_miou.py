# SPDX-License-Identifier: Apache-2.0
"""One confusion matrix, and what three authors' code makes of it."""

from __future__ import annotations

import numpy as np

from evaluators.confusion import (
    class_accuracy,
    class_iou,
    confusions,
    frequency_weighted_iou,
    mean_of_classes,
    pixel_accuracy,
)
from runners import Case, Data, Found, Near
from sis.data.labels import LabelSpace

#: Double precision in another order; CSAIL adds 1e-10 to the union, counted in pixels.
ROUNDING = 1e-9


def definitions(case: Case, data: Data) -> Found:
    config = case["config"]
    count, void = config["num_classes"], config["ignore_drn"]
    assert config["ignore_deeplab"] == void
    classes = [{"id": i, "name": f"class {i}", "colour": [i, i, i]} for i in range(count)]
    space = LabelSpace.model_validate({"name": "case", "void": void, "classes": classes})
    n = confusions(data["labels"], data["preds"], space).sum(0)[None].astype(np.float64)
    hit = np.diagonal(n[0])
    union, mean = class_iou(n, "union")[0], {r: mean_of_classes(class_iou(n, r))[0] for r in ("union", "gt", "all")}
    accuracy = Near(pixel_accuracy(n)[0] / 100, ROUNDING)
    absent = np.isnan(data["drn_iou"])
    np.testing.assert_array_equal(np.isnan(union), absent)
    return {
        "hist": n[0],
        "drn_iou": Near(union / 100, ROUNDING),
        "drn_miou_percent": Near(np.round(mean["union"], 2), ROUNDING),
        "drn_pixel_acc": accuracy,
        "deeplab_miou": Near(mean["gt"] / 100, ROUNDING),
        "deeplab_pixel_acc": accuracy,
        "deeplab_mean_acc": Near(mean_of_classes(class_accuracy(n))[0] / 100, ROUNDING),
        "deeplab_fwiou": Near(frequency_weighted_iou(n)[0] / 100, ROUNDING),
        "csail_intersection": hit,
        "csail_union": n[0].sum(1) + n[0].sum(0) - hit,
        "csail_iou": Near(class_iou(n, "all")[0] / 100, ROUNDING),
        "csail_miou": Near(mean["all"] / 100, ROUNDING),
        "csail_pixel_acc": accuracy,
    }
