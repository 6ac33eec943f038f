# SPDX-License-Identifier: Apache-2.0
"""The Cityscapes judge against its authors' code (fyu/drn), its weights brought in as a checkpoint file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from evaluators.network import Source
from evaluators.segmenters import drn
from runners import Case, Data, Found, Near, names
from runners.eval_deeplab import generated

#: Float32 sums in another order: of a map's standard deviation (as the cases suggest).
TOLERANCE = 1e-5


def near(found: NDArray, data: Data, name: str) -> Near:
    """A map that may differ from the case's by a share of its standard deviation, or in the last bits of its values."""
    return Near(found, TOLERANCE * float(data[name].std()), rtol=4 * float(np.finfo(np.float32).eps))


def decisions(scores: NDArray[np.float32], answer: NDArray, tolerance: float) -> Near:
    """Class indices `(b, h, w)`, exact wherever the best of `scores` `(b, c, h, w)` leads by more than rounding."""
    best = np.sort(scores, axis=1)[:, -2:]
    tied = best[:, 1] - best[:, 0] <= 2 * tolerance
    assert tied.mean() < 0.01, "the scores hardly decide"
    return Near(answer, np.where(tied, 255, 0).reshape(answer.shape))


def single(case: Case, data: Data) -> Found:
    """The network at one scale, with both kernels of its upsampling."""
    judge = _judge(case, scales=None)
    x = torch.from_numpy(data["x"])
    if "image_u8" in data:
        assert torch.allclose(judge.normalised(data["image_u8"]), x, rtol=0, atol=1e-6), "normalisation"
    found: dict[str, NDArray | Near] = {}
    with torch.inference_mode():
        found["logits_s8"] = near(judge.network.logits(x).numpy(), data, "logits_s8")
        as_generated = judge.network(x).numpy()
        judge.network.set_bilinear()
        as_trained = judge.network(x).numpy()
    if "up.weight" in case["keys"]:
        found["up_bilinear_kernel"] = judge.network.up.weight[0, 0].detach().numpy()
    for name in names(case["outputs"]):
        if name.startswith("logprob"):
            found[name] = near(as_generated if name == "logprob_rule_up" else as_trained, data, name)
    return found


def multiscale(case: Case, data: Data) -> Found:
    """The whole test procedure: images resized, log-probabilities resized plane by plane and summed."""
    judge = _judge(case, scales=case["config"]["scales"])
    judge.network.set_bilinear()
    image = data["image_u8"]
    scales = case["config"]["scales"]
    raw = [judge.raw(image, scale) for scale in scales]
    total = judge.log_probabilities(image)[None]
    found: dict[str, NDArray | Near] = {
        "sum_logprob": near(total, data, "sum_logprob"),
        "pred": decisions(total, judge.predict(image[None]), TOLERANCE * float(total.std())),
        "raw_sizes": np.array([planes.shape[1:] for planes in raw]),
    }
    for name in names(case["outputs"]):
        if match := re.fullmatch(r"scale_(\d+(?:_\d+)?)_logprob", name):
            found[name] = near(raw[scales.index(float(match[1].replace("_", ".")))][None], data, name)
    return found


def _judge(case: Case, scales: list[float] | None) -> drn.Drn:
    config = case["config"]
    known = {key: config[key] for key in ("arch", "classes", "mean", "std", "use_torch_up") if key in config}
    options: dict[str, Any] = {**known, "scales": scales}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drn.safetensors"
        save_file({key: generated(key, shape) for key, shape in case["keys"].items()}, path)
        return drn.load(options, Source(files=[path]))
