# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2 with MSC against the authors' (kazuto1011/deeplab-pytorch), weights generated from their key names."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluators.nets.deeplabv2 import MSC, DeepLabV2, Interpolation
from evaluators.segmenters.deeplabv2 import DeepLabV2Segmenter, Options
from runners import Case, Data, Found, Near

#: Float32 sums in another order, as a share of the output's standard deviation.
ROUNDING = 1e-5


def generated(key: str, shape: list[int]) -> Tensor:
    """A weight or buffer of an upstream key, by the rule of the golden cases."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    noise = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        value = np.exp(0.1 * noise)
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
    else:
        value = (1 if key.endswith("weight") else 0) + 0.1 * noise
    return torch.from_numpy(np.asarray(value, np.float32))


def filled(network: nn.Module, keys: dict[str, list[int]]) -> None:
    """Fill a network with a case's generated weights, by the authors' names and in their shapes."""
    assert {k: list(v.shape) for k, v in network.state_dict().items()} == keys, "names and shapes of the authors' file"
    network.load_state_dict({key: generated(key, shape) for key, shape in keys.items()})
    network.eval()


def near(found: Tensor) -> Near:
    return Near(found.numpy(), ROUNDING * float(found.std()))


def decided(labels: NDArray[np.uint8], scores: Tensor) -> Near:
    """Labels `(h, w)`, which may differ only where rounding alone decides between the two best of `(classes, h, w)`."""
    best = scores.topk(2, dim=0).values.numpy()
    open_to_rounding = best[0] - best[1] <= 4 * ROUNDING * float(scores.std())
    return Near(labels, np.where(open_to_rounding, 255.0, 0.0))


def deeplabv2(case: Case, data: Data) -> Found:
    judge = segmenter(case["config"], "new")
    filled(judge.network, case["keys"])
    image = data["image_bgr_u8"][None, ..., ::-1]
    x = judge.prepare(image)
    np.testing.assert_array_equal(x.numpy(), data["x"])
    with torch.inference_mode():
        logits = judge.network(x)
        old = MSC(judge.network.base, judge.network.scales, "old")(x)
        planes = nn.functional.interpolate(logits, image.shape[1:3], mode="bilinear", align_corners=False)
        return {
            "logits_base": near(judge.network.base(x)),
            "logits_msc": near(logits),
            "logits_msc_recompute_scale": near(old),
            "labels": decided(judge.predict(image)[0], planes[0]),
        }


def segmenter(config: dict[str, Any], interpolation: Interpolation) -> DeepLabV2Segmenter:
    """The judge of a case's options."""
    options = Options(
        blocks=config["n_blocks"],
        classes=config["n_classes"],
        rates=config["atrous_rates"],
        scales=config["scales"],
        interpolation=interpolation,
        mean=config["mean_bgr"],
    )
    base = DeepLabV2(options.blocks, options.classes, options.rates)
    return DeepLabV2Segmenter(MSC(base, options.scales, options.interpolation), options)
