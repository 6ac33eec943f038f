# SPDX-License-Identifier: Apache-2.0
"""CSAIL's UPerNet in mmsegmentation: its ResNetV1c as it is, and its head with the pyramid's steps in another order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmseg.models.decode_heads import UPerHead
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

#: Names of the authors' two files, and ours; buffers of their synchronised batch norm are left behind.
ENCODER = (
    (r"^conv(\d)\.", lambda m: f"backbone.stem.{3 * (int(m[1]) - 1)}."),
    (r"^bn(\d)\.", lambda m: f"backbone.stem.{3 * (int(m[1]) - 1) + 1}."),
    (r"^layer", r"backbone.layer"),
)
DECODER = (
    (r"^ppm_conv\.(\d+)\.0\.", r"decode_head.psp_modules.\1.1.conv."),
    (r"^ppm_conv\.(\d+)\.1\.", r"decode_head.psp_modules.\1.1.bn."),
    (r"^ppm_last_conv\.0\.", "decode_head.bottleneck.conv."),
    (r"^ppm_last_conv\.1\.", "decode_head.bottleneck.bn."),
    (r"^fpn_in\.(\d+)\.0\.", r"decode_head.lateral_convs.\1.conv."),
    (r"^fpn_in\.(\d+)\.1\.", r"decode_head.lateral_convs.\1.bn."),
    (r"^fpn_out\.(\d+)\.0\.0\.", r"decode_head.fpn_convs.\1.conv."),
    (r"^fpn_out\.(\d+)\.0\.1\.", r"decode_head.fpn_convs.\1.bn."),
    (r"^conv_last\.0\.0\.", "decode_head.fpn_bottleneck.conv."),
    (r"^conv_last\.0\.1\.", "decode_head.fpn_bottleneck.bn."),
    (r"^conv_last\.1\.", "decode_head.conv_seg."),
)
UNUSED = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")


@MODELS.register_module()
class CsailUPerHead(UPerHead):
    """UPerHead whose pooled maps are enlarged before their 1x1 convolution, as CSAIL trained it.

    mmsegmentation convolves first. The two differ: a ReLU lies between them.
    """

    def psp_forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pyramid pooling of the coarsest map `(b, c, h, w)` -> `(b, channels, h, w)`."""
        x = inputs[-1]
        levels = [x]
        for level in self.psp_modules.children():
            pool, convolution = level.children()
            enlarged = F.interpolate(pool(x), x.shape[2:], mode="bilinear", align_corners=self.align_corners)
            levels.append(convolution(enlarged))
        return self.bottleneck(torch.cat(levels, 1))


def model(classes: int = 150, depth: int = 101) -> dict[str, Any]:
    """Config of the whole model; depth 50 or 101. Pictures come in normalised as the checkpoint's generation wants."""
    norm = {"type": "BN"}
    return {
        "type": "EncoderDecoder",
        "backbone": {"type": "ResNetV1c", "depth": depth, "stem_channels": 128, "norm_cfg": norm, "style": "pytorch"},
        "decode_head": {
            "type": "CsailUPerHead",
            "in_channels": [256, 512, 1024, 2048],
            "in_index": [0, 1, 2, 3],
            "pool_scales": (1, 2, 3, 6),
            "channels": 512,
            "dropout_ratio": 0,
            "num_classes": classes,
            "norm_cfg": norm,
            "align_corners": False,
        },
        "test_cfg": {"mode": "whole"},
    }


def weights(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' two files under mmsegmentation's names."""
    renamed = {}
    for rules, tensors in ((ENCODER, encoder), (DECODER, decoder)):
        for name, value in tensors.items():
            if name.endswith(UNUSED):
                continue
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
    return renamed
