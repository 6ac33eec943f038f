# SPDX-License-Identifier: Apache-2.0
"""SDM's pictures from raw files to the condition tensor, by the cards of the real datasets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runners import Case, Data, Found, Near
from runners.conditions import ids
from runners.prepared import card_of_one_pair, prepared
from sis.data.labels import LabelSpace
from sis.data.pair import Pair
from sis.nets.condition import condition

#: The authors' word for a dataset to our card.
CARDS = {"ade20k": "ade20k", "celeba": "celebamask_hq", "cityscapes": "cityscapes", "coco": "coco_stuff_inst"}


@dataclass
class Replayed:
    """The case's whole numbers, in the order in which they were drawn."""

    draws: list[list[int]]

    def __call__(self, purpose: str, low: int, high: int) -> int:
        assert self.draws, f"{purpose}: the authors' code drew nothing more"
        first, beyond, value = self.draws.pop(0)
        assert (low, high) == (first, beyond), f"{purpose}: drawn from {(low, high)}, by them from {(first, beyond)}"
        return value


def sdm_preprocess(case: Case, data: Data) -> Found:
    config = case["config"]
    space, ours = seen(case, data, "paper")
    _, theirs = seen(case, data, "release")
    assert space.width == config["num_classes"]
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.label, theirs.label)
    y = conditioned(space, theirs)
    assert y.shape[0] == config["y_channels"]
    pixels = theirs.image.transpose(2, 0, 1)
    grey_levels = 1 if "+-1 grey level" in json.dumps(case["notes"]) else 0
    found: dict[str, NDArray | Near] = {
        "image_out_u8": Near(pixels, grey_levels),
        "image_out_f16check": Near(pixels[:, :2, :8] / np.float32(127.5) - 1, 1e-6 + grey_levels / 127.5),
        "label_out": y[: space.width].argmax(axis=0)[None],
        "label_ori": space.to_file(theirs.label),
    }
    if theirs.instance is not None:
        unsaturated = conditioned(space, ours)[-1]
        found |= {"instance_out": theirs.instance[None], "edge_out": y[-1], "edge_unsaturated": unsaturated}
        if "edge_unsaturated" not in data:  # instances of 8 bits: nothing to saturate
            np.testing.assert_array_equal(unsaturated, data["edge_out"])
    return found


def seen(case: Case, data: Data, fidelity: Literal["paper", "release"]) -> tuple[LabelSpace, Pair]:
    """The label table, and what the methods see of the pair: stored in a shard, cut and mirrored as the case drew."""
    config, name = case["config"], CARDS[case["config"]["dataset_mode"]]
    edges, split = config["y_channels"] > config["num_classes"], "train" if config["is_train"] else "val"
    # Faces have no instance map: their label map is one, and the card knows it.
    raw = {kind: data[n] for kind, n in (("photograph", "image"), ("label",) * 2, ("instance",) * 2) if n in data}
    # A dataset's card states its size, and the policy of Cityscapes refuses another; here the answer's is stated.
    height, width = data["image_out_u8"].shape[1:]
    assert min(height, width) == config["image_size"]
    card = card_of_one_pair(name, (height, width), split, raw, edges)
    card = card.model_copy(update={"prepare": card.prepare.model_copy(update={"fidelity": fidelity})})
    preparer, pair = prepared(card, raw)
    drawn = config.get("random_draws", {"randrange_lo_hi_value": [], "flip": False})
    draw = Replayed(list(drawn["randrange_lo_hi_value"]))
    if preparer.augmented:
        pair = preparer.policy.augment(pair, draw)
    assert not draw.draws, f"the authors' code drew more: {draw.draws}"
    return preparer.space, mirrored(pair) if drawn["flip"] else pair


def mirrored(pair: Pair) -> Pair:
    instance = None if pair.instance is None else pair.instance[:, ::-1]
    return replace(pair, photograph=pair.image[:, ::-1], label=pair.label[:, ::-1], instance=instance)


def conditioned(space: LabelSpace, pair: Pair) -> NDArray:
    """The condition tensor `(channels, h, w)` of one pair."""
    label = ids(space.channels(pair.label)[None])
    instance = None if pair.instance is None else ids(pair.instance[None])
    return condition(label, space.width, instance)[0].numpy()
