# SPDX-License-Identifier: Apache-2.0
"""SegFormer, through the package transformers: the kind of judge that IIDM's landscape contest used.

Xie et al., "SegFormer" (NeurIPS 2021). The contest's own weights are not public: any other weights are another judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from evaluators.network import Source, classes_at, fill_from
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate
from sis.errors import SisError

TITLE = "SegFormer (landscapes)"
VERSION = 1

#: The mean and spread of ImageNet's R, G, B in 0..1.
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Table 6 of the paper: depths and channels of the four stages, channels of the decoder.
VARIANTS: dict[str, tuple[list[int], list[int], int]] = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], 256),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], 768),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], 768),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768),
}

#: What transformers 5 calls a weight inside, and its name in files, which is also what transformers 4 calls it.
FILE_NAMES = (
    (r"stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
    (r"stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"attention\.q_proj\.", "attention.self.query."),
    (r"attention\.k_proj\.", "attention.self.key."),
    (r"attention\.v_proj\.", "attention.self.value."),
    (r"attention\.sequence_reduction\.sequence_reduction\.", "attention.self.sr."),
    (r"attention\.sequence_reduction\.layer_norm\.", "attention.self.layer_norm."),
    (r"attention\.o_proj\.", "attention.output.dense."),
    (r"mlp\.fc(\d)\.", r"mlp.dense\1."),
    (r"layernorm_before\.", "layer_norm_1."),
    (r"layernorm_after\.", "layer_norm_2."),
    (r"linear_projections\.", "linear_c."),
)


class Options(StrictModel):
    """What a card may set; 29 classes are the contest's."""

    variant: Literal["b0", "b1", "b2", "b3", "b4", "b5"] = Field("b0", description="size of the network")
    classes: int = Field(29, gt=0, le=256, description="outputs")


class SegformerSegmenter:
    """Feeds pictures one by one at the size that they have, R, G, B less ImageNet's mean over its spread."""

    def __init__(self, network: nn.Module, classes: int, device: str = "cpu") -> None:
        self.network, self.classes, self._device = network, classes, device

    def prepare(self, images: NDArray[np.uint8]) -> Tensor:
        """uint8 RGB `(b, h, w, 3)` -> what the network is fed, float `(b, 3, h, w)`."""
        mean, spread = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_SPREAD))
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
        return (x.float() / 255 - mean) / spread

    def predict(self, images: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Class indices `(b, *size)`: logits (a quarter of the side) resized bilinearly to `size`, then argmax.

        size None = the pictures'.
        """
        found = np.empty((len(images), *(size or images.shape[1:3])), np.uint8)
        with torch.inference_mode():
            for image, classes in zip(images, found, strict=True):
                logits = self.network(pixel_values=self.prepare(image[None]).to(self._device)).logits
                classes[:] = classes_at(logits, classes.shape)
        return found


def load(options: Mapping[str, Any], source: Source) -> SegformerSegmenter:
    """Build the judge; its weights are a file of transformers' SegformerForSemanticSegmentation.

    Raises SisError for unknown options, for weights that do not fit, and where transformers is not installed.
    """
    chosen = validate(Options, dict(options), "options of segmenter segformer")
    network = build(chosen)
    fill_from(network, source)
    return SegformerSegmenter(network, chosen.classes, source.device)


def build(options: Options) -> nn.Module:
    """The network, whose state dict has the names of published files with every version of transformers.

    Raises SisError where transformers is not installed.
    """
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError as error:
        fix = "install the extra `sd`: pip install 'sis-bench[sd]'"
        raise SisError("SegFormer needs the package transformers", fix=fix) from error
    depths, widths, decoder = VARIANTS[options.variant]
    config = SegformerConfig(depths=depths, hidden_sizes=widths, decoder_hidden_size=decoder)
    config.num_labels = options.classes
    network = SegformerForSemanticSegmentation(config)
    inside = {file_name(name): name for name in network.state_dict()}
    network.register_state_dict_post_hook(_give_file_names)

    def take_file_names(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
        for name in list(state):
            state[inside.get(name, name)] = state.pop(name)

    network.register_load_state_dict_pre_hook(take_file_names)
    return network


def file_name(name: str) -> str:
    """The name in files of a weight that transformers calls `name`."""
    for pattern, replacement in FILE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _give_file_names(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    for name in list(state):
        state[file_name(name)] = state.pop(name)
