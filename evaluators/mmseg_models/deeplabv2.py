# SPDX-License-Identifier: Apache-2.0
"""DeepLabV2 with MSC in mmsegmentation: a ResNet whose pool rounds up, a summing pyramid, a maximum over scales."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmseg.models.backbones import ResNet
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from evaluators.nets.deeplabv2 import Interpolation, SummedASPP, maximum_over_scales

#: Names of the authors' checkpoint, and ours.
NAMES = (
    (r"^base\.layer1\.conv1\.conv\.", "backbone.conv1."),
    (r"^base\.layer1\.conv1\.bn\.", "backbone.bn1."),
    (r"^base\.layer(\d)\.block(\d+)\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{int(m[2]) - 1}."),
    (r"\.reduce\.conv\.", ".conv1."),
    (r"\.reduce\.bn\.", ".bn1."),
    (r"\.conv3x3\.conv\.", ".conv2."),
    (r"\.conv3x3\.bn\.", ".bn2."),
    (r"\.increase\.conv\.", ".conv3."),
    (r"\.increase\.bn\.", ".bn3."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
    (r"^base\.aspp\.", "decode_head.aspp."),
)


@MODELS.register_module()
class CeilPoolResNet(ResNet):
    """ResNet whose max-pool keeps a last odd row and column (`ceil_mode`), as Caffe's does."""

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.maxpool.ceil_mode = True


@MODELS.register_module()
class SummedASPPHead(BaseDecodeHead):
    """DeepLabV2's pyramid: the sum of 3x3 convolutions of several rates, each straight to the classes."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int], in_index: int = -1) -> None:
        init = {"type": "Normal", "layer": "Conv2d", "std": 0.01}
        super().__init__(
            in_channels, num_classes, num_classes=num_classes, dropout_ratio=0, in_index=in_index, init_cfg=init
        )
        del self.conv_seg  # the 1x1 classifier of other heads
        self.aspp = SummedASPP(in_channels, num_classes, rates)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The backbone's maps -> logits `(b, num_classes, h, w)` at the size of the chosen map."""
        return self.aspp(self._transform_inputs(inputs))


@MODELS.register_module()
class MaximumOverScales(EncoderDecoder):
    """Encoder and decoder with the pixelwise maximum of the logits of the picture and of resized copies (MSC)."""

    def __init__(
        self,
        backbone: dict[str, Any],
        decode_head: dict[str, Any],
        scales: Sequence[float] = (0.5, 0.75),
        interpolation: Interpolation = "old",
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            backbone,
            decode_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.scales = scales
        self.interpolation: Interpolation = interpolation

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """`(b, 3, h, w)` -> logits `(b, num_classes, h, w)`."""
        return self.decode_head.predict_by_feat(self._forward(inputs), batch_img_metas)

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        def base(x: Tensor) -> Tensor:
            return self.decode_head(self.extract_feat(x))

        return maximum_over_scales(base, inputs, self.scales, self.interpolation)


def model(
    classes: int = 182,
    depth: int = 101,
    rates: Sequence[int] = (6, 12, 18, 24),
    scales: Sequence[float] = (0.5, 0.75),
    interpolation: Interpolation = "old",
) -> dict[str, Any]:
    """Config of the whole model; depth 50, 101 or 152."""
    return {
        "type": "MaximumOverScales",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [104.008, 116.669, 122.675],
            "std": [1.0, 1.0, 1.0],
            "bgr_to_rgb": False,
        },
        "backbone": {
            "type": "CeilPoolResNet",
            "depth": depth,
            "strides": (1, 2, 1, 1),
            "dilations": (1, 1, 2, 4),
            "style": "caffe",
            "norm_cfg": {"type": "BN"},
        },
        "decode_head": {"type": "SummedASPPHead", "in_channels": 2048, "num_classes": classes, "rates": rates},
        "scales": scales,
        "interpolation": interpolation,
        "test_cfg": {"mode": "whole"},
    }


def weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' checkpoint under mmsegmentation's names."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
