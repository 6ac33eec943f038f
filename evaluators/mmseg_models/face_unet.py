# SPDX-License-Identifier: Apache-2.0
"""The face U-Net in mmsegmentation: its UNet with a bare transposed convolution as upsampling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmseg.registry import MODELS
from torch import Tensor, nn

from evaluators.nets.face_unet import WIDTHS

#: Names of the authors' checkpoint, and ours; the first level has no pooling before its convolutions.
NAMES = (
    (r"^conv1\.", "backbone.encoder.0.0."),
    (r"^conv(\d)\.", lambda m: f"backbone.encoder.{int(m[1]) - 1}.1."),
    (r"^center\.", "backbone.encoder.4.1."),
    (r"^up_concat(\d)\.up\.", lambda m: f"backbone.decoder.{int(m[1]) - 1}.upsample.up."),
    (r"^up_concat(\d)\.conv\.", lambda m: f"backbone.decoder.{int(m[1]) - 1}.conv_block."),
    (r"conv([12])\.0\.", lambda m: f"convs.{int(m[1]) - 1}.conv."),
    (r"conv([12])\.1\.", lambda m: f"convs.{int(m[1]) - 1}.bn."),
    (r"^final\.", "decode_head.conv_seg."),
)


@MODELS.register_module()
class BareDeconvolution(nn.Module):
    """2x2 transposed convolution of stride 2; mmsegmentation's own is followed by norm and ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        """with_cp, norm_cfg, act_cfg: what UNet tells every upsampling; without effect here."""
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, c, h, w)` -> `(b, out_channels, 2 h, 2 w)`."""
        return self.up(x)


def model(classes: int = 19, feature_scale: int = 4) -> dict[str, Any]:
    """Config of the whole model; sides must be divisible by 16."""
    width, norm = WIDTHS[0] // feature_scale, {"type": "BN"}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [127.5, 127.5, 127.5],
            "std": [127.5, 127.5, 127.5],
            "bgr_to_rgb": True,
        },
        "backbone": {
            "type": "UNet",
            "base_channels": width,
            "num_stages": 5,
            "norm_cfg": norm,
            "upsample_cfg": {"type": "BareDeconvolution"},
        },
        "decode_head": {
            "type": "FCNHead",
            "in_channels": width,
            "channels": width,
            "in_index": 4,
            "num_convs": 0,
            "concat_input": False,
            "dropout_ratio": 0,
            "num_classes": classes,
        },
        "test_cfg": {"mode": "whole"},
    }


def weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' checkpoint under mmsegmentation's names.

    Its 3x3 convolutions have biases, mmsegmentation's before a batch norm have none: a bias is taken off the norm's
    running mean, which is the same function up to rounding.
    """
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    for name in [n for n in renamed if n.endswith(".conv.bias")]:
        mean = name.replace(".conv.bias", ".bn.running_mean")
        renamed[mean] = renamed[mean] - renamed.pop(name)
    return renamed
