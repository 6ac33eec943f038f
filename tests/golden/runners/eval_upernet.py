# SPDX-License-Identifier: Apache-2.0
"""The ADE20K judge against its authors' code (CSAILVision), its weights brought in as two checkpoint files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional as F

from evaluators.network import Source
from evaluators.segmenters import upernet
from runners import Case, Data, Found, Near, names
from runners.eval_deeplab import generated
from runners.eval_drn import TOLERANCE, decisions, near

#: The case's names of options.
OPTIONS = {"num_class": "classes", "imgSizes": "sizes", "imgMaxSize": "max_size", "padding_constant": "multiple"}
SAME = ("encoder", "decoder", "fc_dim", "fpn_dim", "pool_scales")


def near_probability(found: NDArray, spread: float) -> Near:
    """Probabilities: the softmax makes a relative error of an absolute one in scores of standard deviation `spread`."""
    return Near(found, TOLERANCE * float(found.std()), rtol=TOLERANCE * spread)


def single(case: Case, data: Data) -> Found:
    """Encoder and decoder on one input, with the resizing to the labels' size."""
    judge = _judge(case)
    x = torch.from_numpy(data["x"])
    size = tuple(case["config"]["segSize"])
    found: dict[str, NDArray | Near] = {}
    with torch.inference_mode():
        maps = judge.encoder(x)
        scores = judge.decoder(maps)
        enlarged = upernet.enlarged_rows(scores, (size[0], size[1]), slice(0, size[0]))
        for name in names(case["outputs"]):
            if name.startswith("logprob_stride"):
                values = F.log_softmax(scores, 1)
            elif name == "stem_layer1_corner":
                values = maps[0][tuple(slice(0, n) for n in data[name].shape)]
            elif name == "layer4_pooled":
                values = maps[3].mean((2, 3))
            else:
                continue
            found[name] = near(values.numpy(), data, name)
        found["prob_at_segsize"] = near_probability(F.softmax(enlarged, 1).numpy(), float(scores.std()))
    return found


def multiscale(case: Case, data: Data) -> Found:
    """The whole test procedure: image and labels as the authors load them, softmax averaged over the sizes."""
    judge = _judge(case)
    image, label = data["image_u8"], data["label_u8"]
    sizes = judge.sizes(*image.shape[:2])
    scores = judge.probabilities(image, label.shape)[None]
    answer = judge.predict(image[None], label.shape)
    tolerance = TOLERANCE * float(scores.std())
    first = judge.normalised(image, sizes[0])
    with torch.inference_mode():
        spread = float(judge.scores(first).std())
    return {
        "seg_label": label.astype(np.int16) - 1,
        "scores": near_probability(scores, spread),
        "pred": decisions(scores, answer[0] if data["pred"].ndim == 2 else answer, tolerance),
        "sizes_hw": np.array(sizes),
        "first_img": Near(first.numpy(), 1e-6),
    }


def _judge(case: Case) -> upernet.Upernet:
    config = case["config"]
    assert not config.get("align_corners", False), "the authors interpolate by half-pixel centres"
    options: dict[str, Any] = {key: config[key] for key in SAME if key in config}
    options |= {ours: config[theirs] for theirs, ours in OPTIONS.items() if theirs in config}
    if options["decoder"] not in ("upernet", "upernet_lite"):
        options.pop("fpn_dim", None)
    options["generation"] = "rgb-2019" if max(config.get("mean", (0,))) <= 1 else "bgr-2017"
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{group}.safetensors" for group in ("encoder", "decoder")]
        for file in files:
            save_file({key: generated(key, shape) for key, shape in case["keys"][file.stem].items()}, file)
        return upernet.load(options, Source(files=files))
