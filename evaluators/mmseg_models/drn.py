# SPDX-License-Identifier: Apache-2.0
"""The dilated residual network in mmsegmentation: our trunk as a backbone, its fixed upsampling as a head.

At one scale only: the authors' several scales are summed as log-probabilities, for which mmsegmentation has no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from evaluators.nets.drn import CHANNELS, DrnSegmenter

#: Mean and standard deviation of red, green and blue in 0..1 over the training pictures of Cityscapes (fyu/drn).
MEAN, SPREAD = (0.290101, 0.328081, 0.286964), (0.182954, 0.186566, 0.184475)


@MODELS.register_module()
class DRN(BaseModule):
    """Trunk of output stride 8; `arch`: a key of evaluators.nets.drn.ARCHITECTURES."""

    def __init__(self, arch: str = "drn_d_105", init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg)
        self.base = DrnSegmenter(arch, 1).base

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """`(b, 3, h, w)` -> one map `(b, 512, ceil(h / 8), ceil(w / 8))`."""
        return (self.base(x),)


@MODELS.register_module()
class DRNHead(BaseDecodeHead):
    """1x1 classifier, transposed convolution by 8 with a kernel per class, log-softmax."""

    def __init__(self, num_classes: int, in_channels: int = CHANNELS[-1], in_index: int = -1) -> None:
        super().__init__(in_channels, in_channels, num_classes=num_classes, dropout_ratio=0, in_index=in_index)
        self.up = nn.ConvTranspose2d(num_classes, num_classes, 16, 8, 4, groups=num_classes, bias=False)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The backbone's map -> log-probabilities `(b, num_classes, 8 h, 8 w)`."""
        return F.log_softmax(self.up(self.cls_seg(self._transform_inputs(inputs))), 1)


def model(arch: str = "drn_d_105", classes: int = 19) -> dict[str, Any]:
    """Config of the whole model, at one scale."""
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * value for value in MEAN],
            "std": [255 * value for value in SPREAD],
            "bgr_to_rgb": True,
        },
        "backbone": {"type": "DRN", "arch": arch},
        "decode_head": {"type": "DRNHead", "num_classes": classes},
        "test_cfg": {"mode": "whole"},
    }


def weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' checkpoint under mmsegmentation's names."""
    places = (("base.", "backbone.base."), ("seg.", "decode_head.conv_seg."), ("up.", "decode_head.up."))
    return {
        new + name.removeprefix(old): value
        for name, value in tensors.items()
        for old, new in places
        if name.startswith(old)
    }
