# SPDX-License-Identifier: Apache-2.0
"""Edge maps and condition tensors of SDM, SPADE and IIDM."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from runners import Case, Data, Found, names
from sis.data import edges as numpy_edges
from sis.data.resize import nearest
from sis.nets.condition import condition, edge_map, keeps


def ids(array: NDArray) -> torch.Tensor:
    """Ids `(b, 1, h, w)` or `(b, h, w)` as int64 `(b, h, w)`."""
    return torch.from_numpy(array.astype(np.int64)).reshape(len(array), *array.shape[-2:])


def edges(case: Case, data: Data) -> Found:
    found = {}
    for name in names(case["inputs"]):
        ours = edge_map(ids(data[name])).numpy()
        np.testing.assert_array_equal(ours, numpy_edges.edge_map(data[name].reshape(ours.shape)))
        found[f"edge_{name}"] = ours.reshape(data[name].shape)
    return found


def condition_input(case: Case, data: Data) -> Found:
    width, label = case["config"]["num_classes"], ids(data["label"])
    instance = ids(data["instance"]) if "instance" in data else None
    kept = keeps(torch.from_numpy(data["u"]).flatten(), case["config"]["drop_rate"])
    whole = condition(label, width, instance).numpy()
    return {
        "y_nodrop": whole,
        "y_sampling": whole,
        "y_drop": condition(label, width, instance, kept).numpy(),
        "y_drop_noinst": condition(label, width, None, kept).numpy(),
    }


def iidm_label_onehot(case: Case, data: Data) -> Found:
    width, height = case["config"]["size"]
    small = np.stack([nearest(label, (height, width)) for label in data["label"]])
    return {"label_small": small, "y": condition(ids(small), case["config"]["num_classes"]).numpy()}


def spade_preprocess(case: Case, data: Data) -> Found:
    config = case["config"]
    instance = None if config["no_instance"] else ids(data["inst"])
    width = config["label_nc"] + config["contain_dontcare_label"]
    return {"semantics": condition(ids(data["label"]), width, instance).numpy()}
