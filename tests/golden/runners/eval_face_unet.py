# SPDX-License-Identifier: Apache-2.0
"""The face U-Net against the authors' (switchablenorms/CelebAMask-HQ), weights generated from their key names."""

from __future__ import annotations

import numpy as np
import torch

from evaluators.nets.face_unet import FaceUNet
from evaluators.segmenters.face_unet import FaceSegmenter, Options
from runners import Case, Data, Found
from runners.eval_deeplab import decided, filled, near


def face_unet(case: Case, data: Data) -> Found:
    config, image = case["config"], data["image_u8"]
    assert config["is_deconv"], "interpolation instead of deconvolution cannot run in the authors' code"
    options = Options(
        feature_scale=config["feature_scale"],
        classes=config["n_classes"],
        norm=config["is_batchnorm"],
        size=list(image.shape[:2]),
    )
    network = FaceUNet(options.feature_scale, options.classes, config["in_channels"], options.norm)
    filled(network, case["keys"])
    judge = FaceSegmenter(network, options)
    x = judge.prepare(image[None])
    np.testing.assert_array_equal(x.numpy(), data["x"].reshape(x.shape))
    with torch.inference_mode():
        logits = network(x)
    return {"logits": near(logits), "pred": decided(judge.predict(image[None])[0], logits[0])}
